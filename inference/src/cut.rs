//! Where a graph may be cut: which values are alive at each position, and which positions are offered.

use crate::graph::{Graph, Origin, ValueId};

/// Version of the rules below; manifests carry it with the positions that they gave.
pub(crate) const CUT_VERSION: u32 = 1;

/// Most blocks that a model is divided into.
pub(crate) const MAX_BLOCKS: usize = 200;

/// The positions at which a value is alive: it crosses every cut in `first..=last`.
///
/// Position `p` lies before the `p`-th node of [`Graph::order`]; 0 is before all, `order.len()` after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// For every value the positions that it crosses; `None` for weights and for what nobody reads.
pub(crate) fn spans(graph: &Graph) -> Vec<Option<Span>> {
    let mut spans = vec![None; graph.values.len()];
    for &input in &graph.inputs {
        spans[input] = Some(Span { first: 0, last: 0 });
    }
    for (position, &node) in graph.order.iter().enumerate() {
        for &value in &graph.nodes[node].reads {
            extend(graph, &mut spans, value, position);
        }
        for &value in &graph.nodes[node].writes {
            spans[value] = Some(Span { first: position + 1, last: position });
        }
    }
    for &output in &graph.outputs {
        extend(graph, &mut spans, output, graph.order.len());
    }
    spans.into_iter().map(|span| span.filter(|span| span.first <= span.last)).collect()
}

fn extend(graph: &Graph, spans: &mut [Option<Span>], value: ValueId, position: usize) {
    if graph.values[value].weight {
        return;
    }
    let first = spans[value].map_or(0, |span| span.first);
    spans[value] = Some(Span { first, last: position });
}

/// The values that cross at `position`: model inputs first, then in the order in which they are made.
/// At the two ends the model's own order, constant outputs included.
pub(crate) fn crossing(graph: &Graph, spans: &[Option<Span>], position: usize) -> Vec<ValueId> {
    if position == 0 {
        return graph.inputs.clone();
    }
    if position == graph.order.len() {
        return graph.outputs.clone();
    }
    let mut values: Vec<(usize, ValueId)> = spans
        .iter()
        .enumerate()
        .filter_map(|(value, span)| {
            let span = span.as_ref()?;
            (span.first <= position && position <= span.last).then_some((span.first, value))
        })
        .collect();
    values.sort_unstable();
    values.into_iter().map(|(_, value)| value).collect()
}

/// Bytes of every value that can cross; `None` for one that must not (no tensor, or an element type that does
/// not travel).
pub(crate) type Sizes = Vec<Option<u64>>;

/// Chooses the cut positions: 0, `order.len()` and, where there are more than [`MAX_BLOCKS`] others, the one with
/// the fewest bytes in each of [`MAX_BLOCKS`] - 1 runs of the graph.
pub(crate) fn positions(graph: &Graph, spans: &[Option<Span>], sizes: &Sizes) -> Vec<usize> {
    let end = graph.order.len();
    let bytes = crossing_bytes(spans, sizes, end);
    let inner: Vec<usize> = (1..end).filter(|&position| bytes[position].is_some()).collect();
    let mut chosen = vec![0];
    if inner.len() < MAX_BLOCKS {
        chosen.extend(inner);
    } else {
        let runs = MAX_BLOCKS - 1;
        for run in 0..runs {
            let part = &inner[run * inner.len() / runs..(run + 1) * inner.len() / runs];
            // Of equal ones the last: further behind the cheap operators that follow a heavy one.
            let best = part.iter().copied().min_by_key(|&p| (bytes[p], std::cmp::Reverse(p)));
            chosen.extend(best);
        }
    }
    chosen.push(end);
    chosen
}

/// Bytes that cross at each position; `None` where something crosses that must not.
fn crossing_bytes(spans: &[Option<Span>], sizes: &Sizes, end: usize) -> Vec<Option<u64>> {
    let mut change = vec![(0_i128, 0_i64); end + 2];
    for (span, size) in spans.iter().zip(sizes) {
        let Some(span) = span else { continue };
        let (bytes, barred) = size.map_or((0, 1), |bytes| (i128::from(bytes), 0));
        change[span.first].0 += bytes;
        change[span.first].1 += barred;
        change[span.last + 1].0 -= bytes;
        change[span.last + 1].1 -= barred;
    }
    let (mut bytes, mut barred) = (0, 0);
    let sum = |(more, bars): (i128, i64)| {
        bytes += more;
        barred += bars;
        (barred == 0).then(|| u64::try_from(bytes).unwrap_or(u64::MAX))
    };
    change.into_iter().take(end + 1).map(sum).collect()
}

/// Values whose types decide about cuts: made by a node and alive at some position.
pub(crate) fn candidates(graph: &Graph, spans: &[Option<Span>]) -> Vec<ValueId> {
    (0..graph.values.len())
        .filter(|&value| spans[value].is_some() && matches!(graph.values[value].origin, Origin::Node(_)))
        .collect()
}
