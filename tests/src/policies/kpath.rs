//! SEIFER's placement: transfers in classes; from the highest class down, every run of neighbouring transfers of one
//! class gets a path over the fastest links that have one. Paths are found by colour coding (Alon, Yuster and Zwick
//! 1995): nodes are coloured at random, and a programme over sets of colours finds a path whose colours all differ. Few
//! nodes have a colour each, so that none is missed.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// Sets of devices are one machine word of this many bits.
const MAX_DEVICES: usize = 128;
/// Longest path that colour coding looks for; longer ones are searched depth-first, as the sets of colours grow with
/// the power of the length.
const MAX_COLOURED: usize = 8;
/// Up to so many devices have a colour each.
const FEW: usize = 12;
/// Nodes that a depth-first search visits before it gives up.
const MAX_VISITS: usize = 100_000;

/// Links of at most 128 devices.
#[derive(Debug)]
pub(crate) struct Links<'a> {
    devices: usize,
    rates: &'a [f64],
    /// The different rates, rising, without 0.
    levels: Vec<f64>,
}

impl<'a> Links<'a> {
    /// From rates between all pairs, row by sender.
    pub(crate) fn new(devices: usize, rates: &'a [f64]) -> Result<Self, String> {
        if devices > MAX_DEVICES {
            return Err(format!(
                "SEIFER's placement takes at most {MAX_DEVICES} devices here, not {devices}"
            ));
        }
        let mut levels: Vec<f64> = rates.iter().copied().filter(|&rate| rate > 0.0).collect();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        Ok(Self { devices, rates, levels })
    }

    /// For every device the set of those that it reaches at this rate or faster.
    fn reach(&self, rate: f64) -> Vec<u128> {
        let row = |row: &[f64]| {
            row.iter().enumerate().fold(0u128, |set, (to, &r)| if r >= rate { set | 1 << to } else { set })
        };
        self.rates.chunks(self.devices).map(row).collect()
    }
}

/// Devices for the parts between these transfers. `None` when some run found no path.
pub(crate) fn place(
    links: &Links<'_>,
    transfers: &[f64],
    classes: usize,
    random: &mut ChaCha8Rng,
) -> Option<Vec<usize>> {
    if transfers.is_empty() {
        return Some(vec![0]);
    }
    let mut slots: Vec<Option<usize>> = vec![None; transfers.len() + 1];
    let class_of = classes_of(transfers, classes);
    let mut order: Vec<usize> = class_of.clone();
    order.sort_unstable();
    order.dedup();
    for &class in order.iter().rev() {
        let mut from = 0;
        while from < transfers.len() {
            let length = class_of[from..].iter().take_while(|&&other| other == class).count();
            if length > 0 {
                let run = place_run(links, &slots, from, length, random)?;
                slots[from..=from + length].copy_from_slice(&run);
            }
            from += length.max(1);
        }
    }
    slots.into_iter().collect()
}

/// Equal-width classes between the least and the greatest transfer, as `numpy.histogram_bin_edges` makes them.
fn classes_of(transfers: &[f64], classes: usize) -> Vec<usize> {
    let least = transfers.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = transfers.iter().copied().fold(0.0, f64::max);
    let width = (greatest - least) / classes.max(1) as f64;
    let class = |&transfer: &f64| {
        let steps = if width > 0.0 { (transfer - least) / width } else { 0.0 };
        (steps as usize).min(classes.max(1) - 1)
    };
    transfers.iter().map(class).collect()
}

/// Devices of the run of transfers `from..from + length`: the path whose slowest link is the fastest that is found.
/// The ends of the run may be placed already.
fn place_run(
    links: &Links<'_>,
    slots: &[Option<usize>],
    from: usize,
    length: usize,
    random: &mut ChaCha8Rng,
) -> Option<Vec<Option<usize>>> {
    let (start, end) = (slots[from], slots[from + length]);
    let placed = slots.iter().flatten().fold(0u128, |set, &device| set | 1 << device);
    let everyone = if links.devices == MAX_DEVICES { u128::MAX } else { (1 << links.devices) - 1 };
    let mut search = Search { reach: Vec::new(), free: everyone & !placed, nodes: length + 1, start, end };
    let (mut low, mut high) = (0, links.levels.len());
    let mut best = None;
    while low < high {
        let middle = low.midpoint(high);
        search.reach = links.reach(links.levels[middle]);
        match search.path(random) {
            Some(path) => (best, low) = (Some(path), middle + 1),
            None => high = middle,
        }
    }
    best.map(|path| path.into_iter().map(Some).collect())
}

/// A search for a path of so many nodes, over free ones and the given ends.
struct Search {
    reach: Vec<u128>,
    free: u128,
    nodes: usize,
    start: Option<usize>,
    end: Option<usize>,
}

impl Search {
    fn path(&self, random: &mut ChaCha8Rng) -> Option<Vec<usize>> {
        if self.nodes > MAX_COLOURED {
            return self.depth_first();
        }
        let devices = self.reach.len();
        if devices <= FEW {
            return self.colourful(devices, &(0..devices).collect::<Vec<usize>>());
        }
        // 1.3 colours per node, as SEIFER has them.
        let colours = (13 * self.nodes).div_ceil(10);
        (0..colourings(colours, self.nodes)).find_map(|_| {
            let colour_of: Vec<usize> = self.reach.iter().map(|_| random.random_range(0..colours)).collect();
            self.colourful(colours, &colour_of)
        })
    }

    fn starts(&self) -> u128 {
        self.start.map_or(self.free, |start| 1 << start)
    }

    fn ends(&self) -> u128 {
        self.end.map_or(self.free, |end| 1 << end)
    }

    /// The nodes that may follow after `taken` nodes.
    fn open(&self, taken: usize) -> u128 {
        if taken + 1 == self.nodes { self.ends() } else { self.free }
    }

    fn colourful(&self, colours: usize, colour_of: &[usize]) -> Option<Vec<usize>> {
        let mut of_colour = vec![0u128; colours];
        for (node, &colour) in colour_of.iter().enumerate() {
            of_colour[colour] |= 1 << node;
        }
        // last[set]: nodes where a path ends whose colours are the set.
        let mut last = vec![0u128; 1 << colours];
        for (colour, nodes) in of_colour.iter().enumerate() {
            last[1 << colour] = nodes & self.starts();
        }
        for set in 1usize..1 << colours {
            let taken = set.count_ones() as usize;
            if last[set] == 0 || taken > self.nodes {
                continue;
            }
            if taken == self.nodes {
                return Some(self.trace(&last, colour_of, set));
            }
            let next = members(last[set], self.reach.len()).fold(0, |next, node| next | self.reach[node]);
            for colour in (0..colours).filter(|colour| set & (1 << colour) == 0) {
                last[set | 1 << colour] |= next & of_colour[colour] & self.open(taken);
            }
        }
        None
    }

    fn trace(&self, last: &[u128], colour_of: &[usize], set: usize) -> Vec<usize> {
        let mut set = set;
        let mut path = vec![last[set].trailing_zeros() as usize];
        while path.len() < self.nodes {
            let node = path[path.len() - 1];
            set &= !(1 << colour_of[node]);
            let before = members(last[set], self.reach.len()).find(|&n| self.reach[n] & (1 << node) != 0);
            path.push(before.expect("a node is in a set because one before reaches it"));
        }
        path.reverse();
        path
    }

    fn depth_first(&self) -> Option<Vec<usize>> {
        let mut path = Vec::new();
        // Choices left at every depth.
        let mut open = vec![self.starts()];
        let mut visits = 0;
        while let Some(choices) = open.last_mut() {
            if *choices == 0 {
                open.pop();
                path.pop();
                continue;
            }
            visits += 1;
            if visits > MAX_VISITS {
                return None;
            }
            let node = choices.trailing_zeros() as usize;
            *choices &= *choices - 1;
            path.push(node);
            if path.len() == self.nodes {
                return Some(path);
            }
            let taken = path.iter().fold(0u128, |set, &node| set | 1 << node);
            open.push(self.reach[node] & self.open(path.len()) & !taken);
        }
        None
    }
}

/// Members of a set among the first `count` numbers.
fn members(set: u128, count: usize) -> impl Iterator<Item = usize> {
    (0..count).filter(move |&number| set & (1 << number) != 0)
}

/// So many that a path that is there is missed once in a thousand times.
fn colourings(colours: usize, nodes: usize) -> usize {
    let differ: f64 = (0..nodes).map(|n| (colours - n) as f64 / colours as f64).product();
    (7.0 / differ).ceil() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    use super::*;

    fn slowest(rates: &[f64], devices: usize, path: &[usize]) -> f64 {
        path.windows(2).map(|pair| rates[pair[0] * devices + pair[1]]).fold(f64::INFINITY, f64::min)
    }

    /// The fastest slowest link of all paths of so many nodes.
    fn best(rates: &[f64], devices: usize, nodes: usize, path: &mut Vec<usize>) -> f64 {
        if path.len() == nodes {
            return slowest(rates, devices, path);
        }
        let mut found = 0.0f64;
        for node in 0..devices {
            if !path.contains(&node) {
                path.push(node);
                found = found.max(best(rates, devices, nodes, path));
                path.pop();
            }
        }
        found
    }

    proptest! {
        /// Equal transfers are one class and one path.
        #[test]
        fn the_path_of_one_class_is_the_best(
            rates in prop::collection::vec(0u32..9, 36),
            cuts in 1usize..5,
            seed in 0u64..1000,
        ) {
            let mut rates: Vec<f64> = rates.into_iter().map(f64::from).collect();
            (0..6).for_each(|device| rates[device * 7] = 0.0);
            let links = Links::new(6, &rates).unwrap();
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let placed = place(&links, &vec![3.0; cuts], 20, &mut random);
            let best = best(&rates, 6, cuts + 1, &mut Vec::new());
            let found = placed.map_or(0.0, |path| slowest(&rates, 6, &path));
            prop_assert_eq!(found, best);
        }

        #[test]
        fn the_long_search_finds_a_path_where_all_are_linked(nodes in 9usize..20) {
            let rates: Vec<f64> = (0..400).map(|pair| if pair % 21 == 0 { 0.0 } else { 5.0 }).collect();
            let links = Links::new(20, &rates).unwrap();
            let mut random = ChaCha8Rng::seed_from_u64(1);
            let mut path = place(&links, &vec![3.0; nodes - 1], 20, &mut random).unwrap();
            path.sort_unstable();
            path.dedup();
            prop_assert_eq!(path.len(), nodes);
        }
    }

    /// With more devices than colours every rate that is looked at is missed with a chance of 1 in 1,000.
    #[test]
    fn colour_coding_finds_nearly_every_path() {
        const DEVICES: usize = FEW + 1;
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut is_best = |_: &usize| {
            let mut rates: Vec<f64> =
                (0..DEVICES * DEVICES).map(|_| f64::from(random.random_range(0..40u32))).collect();
            (0..DEVICES).for_each(|device| rates[device * (DEVICES + 1)] = 0.0);
            let links = Links::new(DEVICES, &rates).unwrap();
            let placed = place(&links, &[3.0; 3], 20, &mut random).unwrap();
            let (found, best) =
                (slowest(&rates, DEVICES, &placed), best(&rates, DEVICES, 4, &mut Vec::new()));
            assert!(found <= best);
            found >= best
        };
        assert!((0..100).filter(|case| is_best(case)).count() >= 98);
    }

    #[test]
    fn the_largest_transfer_gets_the_fastest_link() {
        let mut rates = vec![1.0; 16];
        (0..4).for_each(|device| rates[device * 5] = 0.0);
        (rates[2 * 4 + 3], rates[3 * 4 + 2]) = (9.0, 9.0);
        let links = Links::new(4, &rates).unwrap();
        let path = place(&links, &[1.0, 8.0, 1.0], 20, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
        assert_eq!(slowest(&rates, 4, &path[1..3]), 9.0);
    }

    #[test]
    fn classes_are_equal_widths() {
        assert_eq!(classes_of(&[0.0, 1.0, 5.0, 10.0], 10), [0, 1, 5, 9]);
        assert_eq!(classes_of(&[2.0, 2.0], 20), [0, 0]);
    }
}
