//! How tensors on disk make up one in memory: the operations of the conversions, as pieces and a shape.
//!
//! Each takes the keys with their shapes and gives nothing where the shapes do not fit, so that what comes out covers
//! the tensor in memory once.

use super::place::{Piece, Region};

/// Keys with their shapes.
pub type Keys<'a> = Vec<(&'a str, &'a [usize])>;
/// The pieces of a tensor and its shape.
pub type Made = Option<(Vec<Piece>, Vec<usize>)>;

/// Tensors above each other.
pub fn join(sources: &[Keys<'_>]) -> Made {
    let keys: Keys<'_> = sources.iter().flatten().copied().collect();
    if let [(key, shape)] = keys.as_slice() {
        return Some((vec![Piece::whole(*key)], shape.to_vec()));
    }
    let (_, tail) = keys.first()?.1.split_first()?;
    let (mut pieces, mut row) = (Vec::new(), 0usize);
    for (key, shape) in keys {
        let (rows, rest) = shape.split_first()?;
        let end = row.checked_add(*rows).filter(|_| rest == tail)?;
        pieces.push(Piece { memory: Region::rows(row..end), ..Piece::whole(key) });
        row = end;
    }
    Some((pieces, std::iter::once(row).chain(tail.iter().copied()).collect()))
}

/// Matrices of single experts as one tensor. Of a `share` of several, the experts are dealt out in order.
pub fn stack(sources: &[Keys<'_>], transposed: bool, share: (usize, usize)) -> Made {
    let (which, of) = share;
    let all = sources.first()?.len();
    let each = all.div_ceil(of.max(1));
    let range = each.checked_mul(which)?.min(all)..each.checked_mul(which + 1)?.min(all);
    let (mut pieces, mut row, mut cols) = (Vec::new(), 0usize, None);
    for keys in sources {
        let taken = keys.get(range.clone()).filter(|_| keys.len() == all)?;
        let &[rows, width] = taken.first()?.1 else { return None };
        let end = row.checked_add(rows)?;
        if *cols.get_or_insert(width) != width || taken.iter().any(|(_, shape)| *shape != [rows, width]) {
            return None;
        }
        let part = (sources.len() > 1).then_some(row..end);
        let (rows, cols) = if transposed { (None, part) } else { (part, None) };
        pieces.extend(taken.iter().enumerate().map(|(expert, (key, _))| Piece {
            memory: Region { expert: Some(expert), rows: rows.clone(), cols: cols.clone() },
            transposed,
            ..Piece::whole(*key)
        }));
        row = end;
    }
    let (out, into) = (row, cols?);
    Some((pieces, if transposed { vec![range.len(), into, out] } else { vec![range.len(), out, into] }))
}

/// Tensors of all experts, above each other in each expert.
pub fn join_experts(sources: &[Keys<'_>]) -> Made {
    let keys: Keys<'_> = sources.iter().flatten().copied().collect();
    let &[experts, _, cols] = keys.first()?.1 else { return None };
    // An empty tensor may claim any number of them, and costs its file nothing.
    if experts > 1 << 16 || keys.iter().any(|(_, shape)| shape.contains(&0)) {
        return None;
    }
    let (mut pieces, mut row) = (Vec::new(), 0usize);
    for (key, shape) in keys {
        let &[e, rows, c] = shape else { return None };
        let end = row.checked_add(rows).filter(|_| (e, c) == (experts, cols))?;
        pieces.extend((0..experts).map(|expert| Piece {
            memory: Region { expert: Some(expert), rows: Some(row..end), cols: None },
            disk: Region::expert(expert),
            ..Piece::whole(key)
        }));
        row = end;
    }
    Some((pieces, vec![experts, row, cols]))
}

/// An equal share of the rows.
pub fn split((key, shape): (&str, &[usize]), (which, of): (usize, usize)) -> Made {
    let (rows, rest) = shape.split_first()?;
    let share = rows.checked_div(of).filter(|share| share * of == *rows)?;
    let piece = Piece { disk: Region::rows(share * which..share * (which + 1)), ..Piece::whole(key) };
    Some((vec![piece], std::iter::once(share).chain(rest.iter().copied()).collect()))
}

pub fn transpose((key, shape): (&str, &[usize])) -> Made {
    let mut shape = shape.to_vec();
    let last = shape.len().checked_sub(1).filter(|last| *last > 0)?;
    shape.swap(last - 1, last);
    Some((vec![Piece { transposed: true, ..Piece::whole(key) }], shape))
}
