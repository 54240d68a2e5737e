//! A PipeDream-style partition: the shortest slowest stage when all devices and links are taken for equal, as its
//! planner does after profiling one machine. A chain in list order, without replication.

use mesh_planner::{PinnedStage, Problem};

use super::view::{View, over};

/// More steps than a baseline is worth.
const MAX_STEPS: usize = 2_000_000_000;

/// The best partition for devices of mean speed on links of mean bandwidth. Every device's own memory is respected,
/// which is kinder than the original; a device that can hold nothing is left out.
///
/// # Errors
/// When no partition fits, or the problem is senseless or too large.
pub fn pipedream(problem: &Problem) -> Result<Vec<PinnedStage>, String> {
    let view = View::new(problem)?;
    let (least, most) = view.stage_limits();
    let steps = view.blocks.pow(2) / 2 * view.devices() * most;
    if steps > MAX_STEPS {
        return Err(format!("the partition takes {steps} steps, and at most {MAX_STEPS} are allowed"));
    }
    let equal = Equal::new(&view);
    let mut levels: Vec<Vec<Vec<Cell>>> = vec![first_level(&view)];
    for parts in 1..=most {
        let next = next_level(&view, &equal, &levels[parts - 1]);
        levels.push(next);
    }
    let last = |parts: usize| levels[parts][view.devices()][view.blocks];
    let parts = (least.max(1)..=most).min_by(|&a, &b| last(a).slowest_s.total_cmp(&last(b).slowest_s));
    let parts = parts.filter(|&parts| last(parts).slowest_s.is_finite());
    let parts = parts.ok_or("no partition in list order fits the devices' memory")?;
    let (mut ends, mut devices) = (vec![view.blocks], Vec::new());
    let mut cell = last(parts);
    for count in (1..=parts).rev() {
        devices.push(cell.device);
        if count > 1 {
            ends.push(cell.first);
            cell = levels[count - 1][cell.device][cell.first];
        }
    }
    ends.reverse();
    devices.reverse();
    Ok(view.stages(&ends, &devices))
}

/// What PipeDream believes all devices to be.
struct Equal {
    prefix_s: Vec<f64>,
    rate: f64,
}

impl Equal {
    fn new(view: &View<'_>) -> Self {
        let count = view.devices();
        let mut prefix_s = vec![0.0];
        let mut sum = 0.0;
        for block in 0..view.blocks {
            let speeds = (0..count).map(|device| 1.0 / view.seconds(device, block, block + 1).max(1e-12));
            sum += count as f64 / speeds.sum::<f64>();
            prefix_s.push(sum);
        }
        let pairs = (count * count - count).max(1) as f64;
        Self { prefix_s, rate: view.rates().iter().sum::<f64>() / pairs }
    }
}

/// The best way to do the blocks up to some end with the devices before some index.
#[derive(Debug, Clone, Copy)]
struct Cell {
    slowest_s: f64,
    /// First block and device of the last part.
    first: usize,
    device: usize,
}

const NONE: Cell = Cell { slowest_s: f64::INFINITY, first: 0, device: 0 };

/// No parts: only the start is reached, with any number of devices passed over.
fn first_level(view: &View<'_>) -> Vec<Vec<Cell>> {
    let mut row = vec![NONE; view.blocks + 1];
    row[0].slowest_s = 0.0;
    vec![row; view.devices() + 1]
}

/// One part more. Row `k` has the best over last parts on devices before `k`.
fn next_level(view: &View<'_>, equal: &Equal, level: &[Vec<Cell>]) -> Vec<Vec<Cell>> {
    let mut rows = vec![vec![NONE; view.blocks + 1]];
    for device in 0..view.devices() {
        let mut row = rows[device].clone();
        let starts = level[device].iter().map(|cell| cell.slowest_s).enumerate();
        for (first, before) in starts.take(view.blocks) {
            if before.is_infinite() {
                continue;
            }
            for (end, cell) in row.iter_mut().enumerate().skip(first + 1) {
                let hop_s = if end < view.blocks { over(view.cut(end), equal.rate) } else { 0.0 };
                let compute_s = equal.prefix_s[end] - equal.prefix_s[first];
                let slowest_s = before.max(compute_s).max(hop_s);
                if slowest_s < cell.slowest_s && view.fits(device, first, end) {
                    *cell = Cell { slowest_s, first, device };
                }
            }
        }
        rows.push(row);
    }
    rows
}
