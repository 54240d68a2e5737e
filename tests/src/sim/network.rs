//! Which devices are connected, and what becomes of a packet.

use super::dice::Dice;
use super::options::SimOptions;

/// One direction of a pair of devices.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// Connections are numbered; a packet of an earlier one is lost. Both directions have the same.
    connection: Option<u64>,
    /// Nothing gets through and nobody notices, until then.
    silent_until_ms: u64,
    /// No connection can be made until then.
    cut_until_ms: u64,
}

/// All pairs of devices.
#[derive(Debug)]
pub(crate) struct Network {
    ways: Vec<Vec<Way>>,
    connections: u64,
}

impl Network {
    pub(crate) fn new(devices: usize) -> Self {
        Self { ways: vec![vec![Way::default(); devices]; devices], connections: 0 }
    }

    pub(crate) fn connection(&self, from: usize, to: usize) -> Option<u64> {
        self.ways[from][to].connection
    }

    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        self.connections += 1;
        self.ways[a][b].connection = Some(self.connections);
        self.ways[b][a].connection = Some(self.connections);
    }

    /// True if there was a connection.
    pub(crate) fn disconnect(&mut self, a: usize, b: usize) -> bool {
        self.ways[b][a].connection = None;
        self.ways[a][b].connection.take().is_some()
    }

    pub(crate) fn can_connect(&self, a: usize, b: usize, now_ms: u64) -> bool {
        a != b && self.ways[a][b].connection.is_none() && self.ways[a][b].cut_until_ms <= now_ms
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize, until_ms: u64) {
        self.ways[a][b].cut_until_ms = until_ms;
        self.ways[b][a].cut_until_ms = until_ms;
    }

    pub(crate) fn silence(&mut self, from: usize, to: usize, until_ms: u64) {
        self.ways[from][to].silent_until_ms = until_ms;
    }

    pub(crate) fn heal(&mut self) {
        for way in self.ways.iter_mut().flatten() {
            way.silent_until_ms = 0;
            way.cut_until_ms = 0;
        }
    }

    /// How long each copy of a packet travels: none when it is lost, two when it is doubled.
    pub(crate) fn delays_ms(
        &self,
        dice: &mut Dice,
        options: &SimOptions,
        (from, to): (usize, usize),
        now_ms: u64,
    ) -> Vec<u64> {
        let way = &self.ways[from][to];
        if way.connection.is_none() || now_ms < way.silent_until_ms || dice.permille(options.loss) {
            return Vec::new();
        }
        let copies = if dice.permille(options.duplication) { 2 } else { 1 };
        let mut delay_ms = || {
            let (low, high) = options.delay_ms;
            let usual = dice.between(low, high);
            if dice.permille(options.straggler) { usual + dice.below(options.straggler_ms) } else { usual }
        };
        (0..copies).map(|_| delay_ms()).collect()
    }
}
