//! One expert of a tensor that holds all of them.
//!
//! Fused experts come in two layouts: (E, out, in), where the gate is the upper half of the rows of `gate_up_proj` and
//! the up projection the lower, and (E, in, out), where they are the left and the right half of the columns. Which one
//! it is shows in the shapes of the pair: `gate_up_proj` has the intermediate size twice and `down_proj` once.
//!
//! An adapter made before transformers 5 names experts one by one, `experts.3.gate_proj`; here such a name is taken
//! apart and the part of the fused tensor that it means is cut out.

use std::ops::Range;

use super::place::{Found, How, Piece, Region};

/// Which matrix of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// The projection that is gated.
    Up,
    /// The projection that gates it.
    Gate,
    /// The projection back.
    Down,
}

/// The name of a matrix of one expert, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expert<'a> {
    /// The path of the module that holds the experts.
    pub module: &'a str,
    /// Its number.
    pub number: usize,
    /// Which of its matrices.
    pub which: Which,
}

/// `...experts.3.gate_proj.weight`, taken apart.
pub fn parse(name: &str) -> Option<Expert<'_>> {
    let (rest, leaf) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let which = match leaf {
        "gate_proj" | "w1" => Which::Gate,
        "up_proj" | "w3" => Which::Up,
        "down_proj" | "w2" => Which::Down,
        _ => return None,
    };
    let (module, number) = rest.rsplit_once('.')?;
    let holds = module == "experts" || module.ends_with(".experts");
    Some(Expert { module, number: number.parse().ok().filter(|_| holds)?, which })
}

/// Whether the pair of these shapes is (E, in, out). `None` if it is neither that nor (E, out, in).
pub fn lies_transposed(gate_up: &[usize], down: &[usize]) -> Option<bool> {
    let (&[e1, a, b], &[e2, c, d]) = (gate_up, down) else { return None };
    let plain = d.checked_mul(2) == Some(a) && b == c;
    let transposed = c.checked_mul(2) == Some(b) && a == d;
    // Not both: then the hidden size would be half and twice the intermediate size at once, hence nought.
    (e1 == e2 && plain != transposed).then_some(transposed)
}

/// The matrix `which` of expert `number`, out of `fused`: `gate_up_proj` or `down_proj` as found, `transposed` if they
/// are (E, in, out) in memory.
pub fn cut(fused: &Found, number: usize, which: Which, transposed: bool) -> Option<Found> {
    let &[experts, rows, cols] = fused.memory_shape.as_slice() else { return None };
    let (outer, inner) = if transposed { (cols, rows) } else { (rows, cols) };
    let range = match which {
        Which::Gate => Some(0..outer / 2),
        Which::Up => Some(outer / 2..outer),
        Which::Down => None,
    };
    if number >= experts || (range.is_some() && outer % 2 != 0) {
        return None;
    }
    let piece = match fused.pieces.as_slice() {
        [whole] if whole.memory.is_all() && whole.disk.is_all() => {
            let on_disk = transposed != whole.transposed;
            let disk = part(number, range.clone(), on_disk);
            Piece { key: whole.key.clone(), memory: Region::ALL, disk, transposed: on_disk }
        }
        pieces => {
            let wanted = part(number, range.clone(), transposed);
            let piece = pieces.iter().find(|piece| piece.memory == wanted)?;
            Piece { memory: Region::ALL, transposed: piece.transposed != transposed, ..piece.clone() }
        }
    };
    let how = if fused.how == How::Direct { How::Equivalent } else { fused.how };
    Some(Found { pieces: vec![piece], how, memory_shape: vec![range.map_or(outer, |range| range.len()), inner] })
}

/// A range of the output axis of one expert.
fn part(expert: usize, range: Option<Range<usize>>, transposed: bool) -> Region {
    let (rows, cols) = if transposed { (None, range) } else { (range, None) };
    Region { expert: Some(expert), rows, cols }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_expert() {
        let name = "model.layers.2.block_sparse_moe.experts.13.w3.weight";
        let module = "model.layers.2.block_sparse_moe.experts";
        assert_eq!(parse(name), Some(Expert { module, number: 13, which: Which::Up }));
        for other in
            ["experts.gate_up_proj", "a.shared_experts.1.w1.weight", "experts.1.w1.bias", "experts.x.w1.weight"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn shapes_tell_the_layout() {
        // E = 4, hidden 8, intermediate 6
        assert_eq!(lies_transposed(&[4, 12, 8], &[4, 8, 6]), Some(false));
        assert_eq!(lies_transposed(&[4, 8, 12], &[4, 6, 8]), Some(true));
        // hidden equal to the intermediate size, and to twice that
        assert_eq!(lies_transposed(&[4, 16, 8], &[4, 8, 8]), Some(false));
        assert_eq!(lies_transposed(&[4, 16, 16], &[4, 8, 16]), Some(true));
        assert_eq!(lies_transposed(&[4, 16, 16], &[4, 16, 8]), Some(false));
        assert_eq!(lies_transposed(&[4, 12, 8], &[4, 8, 8]), None);
        assert_eq!(lies_transposed(&[4, 12, 8], &[5, 8, 6]), None);
        assert_eq!(lies_transposed(&[1, 0, 0], &[1, 0, 0]), None);
    }

    #[test]
    fn an_expert_is_rows_or_columns() {
        let piece = Piece::whole("m.experts.gate_up_proj");
        let fused = Found { pieces: vec![piece.clone()], how: How::Direct, memory_shape: vec![4, 12, 8] };
        let up = cut(&fused, 3, Which::Up, false).unwrap();
        assert_eq!(up.memory_shape, [6, 8]);
        assert_eq!(up.pieces[0].disk, Region { expert: Some(3), rows: Some(6..12), cols: None });
        assert!(!up.pieces[0].transposed);
        assert_eq!(cut(&fused, 4, Which::Up, false), None);

        let fused = Found { pieces: vec![piece], how: How::Direct, memory_shape: vec![4, 8, 12] };
        let gate = cut(&fused, 0, Which::Gate, true).unwrap();
        assert_eq!(gate.memory_shape, [6, 8]);
        assert_eq!(gate.pieces[0].disk, Region { expert: Some(0), rows: None, cols: Some(0..6) });
        assert!(gate.pieces[0].transposed);
    }
}
