//! From an action on a tensor in memory to actions on rows of the tensor on disk.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, s};

use super::source::{Edit, Part};
use crate::adapter::delta::Factors;
use crate::adapter::{Action, Delta, Reversal, Target};
use crate::error::{Context, Error, Result};
use crate::names::{Piece, Region};
use crate::tensor::{Rows, Shape};

/// A tensor on disk seen as a matrix: a stack of experts has its matrices one under the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// All rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Rows of one expert; all rows where it is no stack.
    pub height: usize,
}

/// What happens to some rows of the matrix on disk.
pub struct Placed {
    /// Number of the adapter it comes from.
    pub number: usize,
    /// The user's multiplier.
    pub strength: f64,
    /// What it is multiplied by where the adapter as a whole is at strength 1.
    pub share: f64,
    /// Rows it happens to.
    pub rows: Range<usize>,
    /// What it is.
    pub what: What,
}

/// The two forms of a change.
pub enum What {
    /// Factors of exactly those rows and all columns.
    LowRank(Factors),
    /// An action whose row `offset` is the first of those rows.
    Act {
        /// The action on the tensor in memory.
        action: Arc<Action>,
        /// Its row that lies first.
        offset: usize,
        /// How many rows it has: those that lie elsewhere count for what needs all of them.
        height: usize,
    },
}

impl Placed {
    /// How it can be taken back.
    pub fn reversal(&self) -> Reversal {
        match &self.what {
            What::LowRank(_) => Reversal::Sum,
            What::Act { action, .. } => action.reversal(),
        }
    }
}

impl Grid {
    /// The matrix of a tensor; `stacked` where edits speak of experts.
    pub fn of(shape: &Shape, stacked: bool) -> Grid {
        match *shape.dims() {
            [count, height, cols] if stacked => Grid { rows: count * height, cols, height },
            _ => {
                let (rows, cols) = shape.matrix();
                Grid { rows, cols, height: rows }
            }
        }
    }
}

/// True where the tensor on disk has to be seen as a stack.
pub fn is_stacked(edits: &[Edit]) -> bool {
    let stack_of_products =
        |target: &Target| target.is_parameter() && target.weight.iter().any(|delta| matches!(delta, Delta::LowRank(_)));
    edits
        .iter()
        .any(|e| e.piece.disk.expert.is_some() || (e.source.stored.rank() == 3 && stack_of_products(&e.source.target)))
}

/// The edit, placed on the matrix on disk.
pub fn place(edit: &Edit, grid: Grid) -> Result<Vec<Placed>> {
    let Edit { source, piece } = edit;
    let action = source.action()?;
    let placed = |rows, what| Placed {
        number: source.number,
        strength: source.total(),
        share: source.target.share.0,
        rows,
        what,
    };
    let at = |expert: Option<usize>, factors: &Factors| -> Result<Placed> {
        let (rows, factors) = lay(factors, piece, expert, grid)?;
        Ok(placed(rows, What::LowRank(factors)))
    };
    let all = match (&*action, piece.memory.expert) {
        (Action::LowRank(f), _) => vec![at(piece.disk.expert, f)?],
        (Action::Experts(all), Some(e)) => {
            let f = all.get(e).ok_or_else(|| Error::mismatch(format!("no factors for expert {e}")))?;
            vec![at(piece.disk.expert, f)?]
        }
        (Action::Experts(all), None) => {
            all.iter().enumerate().map(|(e, f)| at(Some(e), f)).collect::<Result<Vec<_>>>()?
        }
        (Action::Act(_), _) => {
            let (rows, offset) = act_rows(&action, edit, grid)?;
            let height = edit.source.stored.matrix().0.max(offset.saturating_add(rows.len()));
            vec![placed(rows, What::Act { action: Arc::clone(&action), offset, height })]
        }
    };
    for Placed { rows, .. } in &all {
        if rows.end > grid.rows {
            let what = format!("rows {rows:?} of the base's {} are beyond its end", piece.key);
            return Err(Error::mismatch(what).at_key(source.path.as_str()));
        }
    }
    Ok(all)
}

/// Factors for the part of the product that lies on disk, and its rows there.
fn lay(f: &Factors, piece: &Piece, expert: Option<usize>, grid: Grid) -> Result<(Range<usize>, Factors)> {
    let Region { rows, cols, .. } = &piece.memory;
    let (height, width) = (f.b.nrows(), f.a.ncols());
    let rows = rows.clone().unwrap_or(0..height);
    let cols = cols.clone().unwrap_or(0..width);
    if rows.start > rows.end || cols.start > cols.end || rows.end > height || cols.end > width {
        let what = format!("delta of [{height}, {width}] is smaller than the part {rows:?}, {cols:?} of it");
        return Err(Error::mismatch(what)).at_key(&piece.key);
    }
    let part = f.part(rows, cols);
    let part = if piece.transposed { part.transposed() } else { part };
    let first = first_row(expert, piece, grid);
    let part = match &piece.disk.cols {
        None => part,
        Some(cols) => widened(&part, cols.clone(), grid.cols)?,
    };
    if part.a.ncols() != grid.cols {
        let what = format!("{} columns, the base has {}", part.a.ncols(), grid.cols);
        return Err(Error::mismatch(what)).at_key(&piece.key);
    }
    Ok((first..first.saturating_add(part.b.nrows()), part))
}

/// The row on disk at which a piece begins.
fn first_row(expert: Option<usize>, piece: &Piece, grid: Grid) -> usize {
    let within = piece.disk.rows.as_ref().map_or(0, |r| r.start);
    expert.unwrap_or(0).saturating_mul(grid.height).saturating_add(within)
}

/// The same product with columns of zeros around it.
fn widened(f: &Factors, cols: Range<usize>, width: usize) -> Result<Factors> {
    if cols.start > cols.end || cols.len() != f.a.ncols() || cols.end > width {
        return Err(Error::mismatch(format!("{} columns for the range {cols:?}", f.a.ncols())));
    }
    let mut a = Array2::zeros((f.a.nrows(), width));
    a.slice_mut(s![.., cols]).assign(&f.a);
    Ok(Factors { a, b: f.b.clone(), scale: f.scale })
}

/// Rows on disk of an action that is no product, and the first row of the action among them.
fn act_rows(action: &Action, edit: &Edit, grid: Grid) -> Result<(Range<usize>, usize)> {
    let Edit { source, piece } = edit;
    let (height, width) = source.stored.matrix();
    let misfit = || {
        let error = if grid.height < grid.rows {
            Error::unsupported("a change of a whole stack of experts together with changes of each by itself")
        } else {
            Error::mismatch(format!("a change of {} for a part of another form", source.stored))
        };
        error.at_key(&piece.key)
    };
    let whole = piece.memory.is_all() && piece.disk.is_all();
    if whole && !piece.transposed {
        // A whole tensor put in its place or added is the same elements, seen as a stack or as one matrix.
        let full = source.part == Part::Weight && source.target.weight.iter().all(|d| matches!(d, Delta::Full(_)));
        let elements = |rows: usize, cols: usize| rows.checked_mul(cols);
        let fits = (height, width) == (grid.rows, grid.cols)
            || (full && elements(height, width) == elements(grid.rows, grid.cols));
        return if fits { Ok((0..grid.rows, 0)) } else { Err(misfit()) };
    }
    let in_rows = piece.memory.expert.is_none() && piece.memory.cols.is_none() && piece.disk.cols.is_none();
    if !in_rows || piece.transposed || action.rows() != Rows::Any {
        let what = "this kind of change needs the whole weight, and the base stores it in parts or with others";
        return Err(Error::unsupported(what)).at_key(&piece.key);
    }
    let offset = piece.memory.rows.as_ref().map_or(0, |r| r.start);
    let length = piece.memory.rows.as_ref().or(piece.disk.rows.as_ref()).map_or(grid.height, ExactSizeIterator::len);
    if width != grid.cols || offset.saturating_add(length) > height {
        return Err(misfit());
    }
    let first = first_row(piece.disk.expert, piece, grid);
    Ok((first..first.saturating_add(length), offset))
}
