//! DEFER (arXiv 2201.06769): the user names the cuts, part `i` runs on the `i`-th device of a list. Nothing is
//! measured, and neither memory nor links are looked at.

use mesh_inference::model::Model;
use mesh_planner::{PinnedStage, Problem};

use super::view::View;

/// A chain in list order. `cuts` are the first blocks of every part but the first; without them the parts have equal
/// numbers of blocks, as many parts as devices.
///
/// # Errors
/// When the cuts do not divide the blocks, there are more parts than devices, or the problem is senseless.
pub fn defer(problem: &Problem, cuts: Option<&[usize]>) -> Result<Vec<PinnedStage>, String> {
    let view = View::new(problem)?;
    let mut ends = match cuts {
        Some(cuts) => cuts.to_vec(),
        None => equal_parts(&view),
    };
    ends.push(view.blocks);
    let rising = ends[0] > 0 && ends.windows(2).all(|pair| pair[0] < pair[1]);
    if !rising {
        return Err(format!(
            "the cuts {:?} do not divide {} blocks; give rising positions between them",
            cuts.unwrap_or_default(),
            view.blocks
        ));
    }
    let (parts, devices) = (ends.len(), view.devices());
    if parts > devices {
        return Err(format!("{parts} parts need {parts} devices; there are {devices}: give fewer cuts"));
    }
    Ok(view.stages(&ends, &(0..parts).collect::<Vec<_>>()))
}

fn equal_parts(view: &View<'_>) -> Vec<usize> {
    let parts = view.stage_limits().1;
    (1..parts).map(|part| view.blocks * part / parts).collect()
}

/// Positions behind the residual joins of a convolutional network: where several branches end in one tensor that an
/// activation of the same size follows, the position after the activation.
pub fn residual_joins(model: &Model) -> Vec<usize> {
    let cuts: Vec<(usize, u64)> =
        model.cuts().iter().map(|cut| (cut.tensors.len(), model.typical_cut_bytes(cut))).collect();
    joins(&cuts)
}

/// From the tensors and bytes at every cut.
fn joins(cuts: &[(usize, u64)]) -> Vec<usize> {
    let is_join = |window: &[(usize, u64)]| match window {
        &[(before, _), (1, joined), (1, activated)] => before > 1 && joined == activated,
        _ => false,
    };
    (2..cuts.len().saturating_sub(1)).filter(|&p| is_join(&cuts[p - 2..=p])).collect()
}

/// DEFER's cuts for a chain of `parts`: its `test.py` divides ResNet-50 over 8 nodes at every second of the 16
/// residual joins (`add_2`, `add_4`, ... `add_14`); for other numbers they are as evenly spaced.
///
/// Keras counts the joins from 0 or from 1, by its version. Counted from 1 the eight parts have two joins each, which
/// is the better division, so that is the reading taken here.
///
/// # Errors
/// When the model has fewer joins than parts.
pub fn defer_cuts(model: &Model, parts: usize) -> Result<Vec<usize>, String> {
    even_joins(&residual_joins(model), parts)
}

fn even_joins(joins: &[usize], parts: usize) -> Result<Vec<usize>, String> {
    if parts == 0 || joins.len() < parts {
        return Err(format!("the model has {} residual joins; they make no {parts} parts", joins.len()));
    }
    // The nearest whole join, halves upwards.
    Ok((1..parts).map(|part| joins[(2 * joins.len() * part + parts) / (2 * parts) - 1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stem of three nodes, then blocks of `inner` nodes with two live tensors, an addition and an activation.
    fn residual(blocks: usize, inner: usize) -> Vec<(usize, u64)> {
        let mut cuts = vec![(1, 600), (1, 3200), (1, 3200), (1, 800)];
        for _ in 0..blocks {
            cuts.extend(std::iter::repeat_n((2, 1200), inner));
            cuts.extend([(1, 800), (1, 800)]);
        }
        cuts.extend([(1, 8), (1, 8), (1, 4)]);
        cuts
    }

    #[test]
    fn a_join_is_where_branches_end_in_one_tensor() {
        let found = joins(&residual(16, 5));
        assert_eq!(found.len(), 16);
        assert_eq!(found[0], 10);
        assert!(found.windows(2).all(|pair| pair[1] - pair[0] == 7));
        assert!(joins(&[(1, 4), (1, 4), (1, 4), (1, 4)]).is_empty());
    }

    #[test]
    fn eight_parts_are_cut_as_in_its_test() {
        let joins: Vec<usize> = (1..=16).collect();
        assert_eq!(even_joins(&joins, 8).unwrap(), [2, 4, 6, 8, 10, 12, 14]);
        assert_eq!(even_joins(&joins, 4).unwrap(), [4, 8, 12]);
        assert_eq!(even_joins(&joins, 6).unwrap(), [3, 5, 8, 11, 13]);
        assert_eq!(even_joins(&joins, 1).unwrap(), [] as [usize; 0]);
        assert!(even_joins(&joins[..3], 4).is_err());
    }
}
