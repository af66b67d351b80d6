//! The merge step with its inverse in one pass: every variant finds what the plain loops find one after the other, bit
//! for bit, and merges to the same bytes as the merge step alone.

use half::bf16;
use lora_tool::kernels::fused::guess::{Doubt, Guess, add_product_with, take_off_with};
use lora_tool::kernels::fused::inverse::{Addend, Factor, Pointwise, invert};
use lora_tool::kernels::fused::{Element, Moved, Term, Variant, add_products_to_tile_with, add_products_with};

use crate::kernels::{Owned, Random, same, special_values, stored};

/// What the plain loops make of some weights.
struct Expected {
    merged: Vec<u8>,
    moved: Moved,
    guess: Vec<u8>,
    doubtful: Vec<u32>,
}

fn expected(w: &[u8], (rows, cols): (usize, usize), term: Term) -> Expected {
    let plain = Variant::Plain;
    let mut merged = vec![0; w.len()];
    let moved = add_products_with(plain, Element::BF16, w, &mut merged, rows, cols, &[term]);
    let (guess, doubtful) = taken_off(&merged, (rows, cols), term);
    Expected { merged, moved, guess, doubtful }
}

fn taken_off(merged: &[u8], (rows, cols): (usize, usize), term: Term) -> (Vec<u8>, Vec<u32>) {
    let plain = Variant::Plain;
    let mut tile = vec![0f32; rows * cols];
    add_products_to_tile_with(plain, &mut tile, rows, cols, &[Term { scale: 1.0, ..term }]);
    let addends = [Addend { values: &tile, scale: term.scale }];
    let step = Pointwise { addends: &addends, factor: Factor::None };
    let (mut guess, mut doubtful) = (vec![0; merged.len()], Vec::new());
    invert(plain, (Element::BF16, Element::BF16), merged, (rows, cols), step, &mut guess, &mut doubtful);
    (guess, doubtful)
}

fn list(doubt: &Doubt) -> Vec<u32> {
    let mut out = Vec::new();
    doubt.append_to(0, &mut out);
    out
}

/// Holds every variant to the plain loops, in calls of `split` rows.
fn check(what: &str, w: &[u8], (rows, cols): (usize, usize), term: &Owned, split: usize) {
    let expected = expected(w, (rows, cols), term.term(0));
    let doubted: std::collections::HashSet<u32> = expected.doubtful.iter().copied().collect();
    let (mut pairs, mut sure) = (Vec::new(), true);
    for (i, (truth, guess)) in w.as_chunks::<2>().0.iter().zip(expected.guess.as_chunks::<2>().0).enumerate() {
        match doubted.contains(&(i as u32)) {
            true => pairs.push(u32::from(u16::from_le_bytes(*guess)) | u32::from(u16::from_le_bytes(*truth)) << 16),
            false => sure &= truth == guess,
        }
    }
    for variant in Variant::present() {
        let what = format!("{variant:?} {what} {rows}x{cols} split {split}");
        let (mut guess, mut merged, mut moved) = (Guess::default(), vec![0; w.len()], Moved::default());
        guess.reset(3, cols + 1); // what was there before is forgotten
        guess.reset(rows, cols);
        for first in (0..rows).step_by(split.max(1)) {
            let part = first..(first + split).min(rows);
            let bytes = 2 * part.start * cols..2 * part.end * cols;
            let (w, out) = (&w[bytes.clone()], &mut merged[bytes]);
            moved.add(&add_product_with(variant, w, out, (part.len(), cols), term.term(first), (&mut guess, first)));
        }
        if split >= rows {
            same(&what, &(merged, moved), &(expected.merged.clone(), expected.moved));
        } else {
            assert!(merged == expected.merged, "{what}");
        }
        // Where anything is out of the ordinary, a guess need not be of use; where it says so, it has to be right.
        let usual = |x: &[u8; 2]| bf16::from_le_bytes(*x).to_f32().abs() < 2f32.powi(126);
        let all_usual = [w, &expected.merged, &expected.guess].iter().all(|x| x.as_chunks::<2>().0.iter().all(usual));
        assert!(!guess.is_right() || sure, "{what}");
        assert!(guess.is_right() || !sure || !all_usual, "{what}");
        if guess.is_right() {
            let found: Vec<u32> = guess.doubtful().flatten().copied().collect();
            assert!(found == pairs && guess.count() == pairs.len(), "{what}");
        }

        let (mut back, mut doubt) = (vec![1; w.len()], Doubt::default());
        take_off_with(variant, &expected.merged, &mut back, (rows, cols), term.term(0), &mut doubt);
        assert!(back == expected.guess && list(&doubt) == expected.doubtful, "{what}");
    }
}

#[test]
fn shapes_and_ranks() {
    let mut random = Random::new(21);
    let mut shapes =
        vec![(0, 5), (5, 0), (1, 1), (1, 64), (7, 1), (13, 97), (6, 16), (64, 130), (3, 1100), (9, 5053), (300, 70)];
    shapes.extend((0..30).map(|_| (1 + random.below(40), 1 + random.below(300))));
    for (rows, cols) in shapes {
        for rank in [0, 1, 3, 16, 65] {
            let mut term = Owned::new(&mut random, rows, cols, rank);
            term.scale *= [1.0, 0.01, 1e-4][random.below(3)];
            // Among them weights that are nothing.
            let bytes = stored(
                Element::BF16,
                (0..rows * cols).map(|_| random.normal() * [0.03, 0.03, 0.03, 0.0, -0.0, 1e-6][random.below(6)]),
            );
            for split in [rows, 1, 5] {
                check(&format!("rank {rank}"), &bytes, (rows, cols), &term, split);
            }
        }
    }
}

/// Weights of all patterns; factors and scales out of the ordinary.
#[test]
fn numbers_out_of_the_ordinary() {
    let mut random = Random::new(22);
    let (rows, cols) = (256, 256);
    let w: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    // The same in another order, so that special patterns lie among usual ones.
    let mixed: Vec<u8> = (0..=u16::MAX).flat_map(|i| i.wrapping_mul(40503).to_le_bytes()).collect();
    for scale in [0.0, -0.0, 1.0, -0.5, 1e-30, 1e38, f32::INFINITY, f32::NAN] {
        for rare in [1, 40, 1 << 40] {
            for w in [&w, &mixed] {
                let mut term = Owned::new(&mut random, rows, cols, 3);
                term.scale = scale;
                for x in term.a.iter_mut().chain(&mut term.b) {
                    if random.below(rare) == 0 {
                        *x = special_values()[random.below(special_values().len())];
                    }
                }
                check(&format!("scale {scale} rare {rare}"), w, (rows, cols), &term, 100);
            }
        }
    }
}

/// Sums of every size beside every weight: zero is among the candidates, or the result has no exponent of its own.
#[test]
fn sums_of_every_size() {
    let mut random = Random::new(23);
    let (rows, cols) = (64, 1024);
    let w: Vec<u8> = (0..=u16::MAX).flat_map(|i| i.wrapping_mul(40503).to_le_bytes()).collect();
    let mut term = Owned::new(&mut random, rows, cols, 1);
    for _ in 0..40 {
        for x in term.a.iter_mut().chain(&mut term.b) {
            *x = f32::from_bits((random.bits() as u32 & 0x807f_ffff) | ((random.below(130) as u32 + 1) << 23));
        }
        term.scale = if random.below(2) == 0 { 1.0 } else { -1e20 };
        check("sizes", &w, (rows, cols), &term, rows);
    }
    // Products that underflow to the negative zero, on weights that are one.
    term.a.fill(1e-30);
    term.b.fill(-1e-30);
    for scale in [1.0, -1.0] {
        term.scale = scale;
        check("underflow", &[0, 0x80].repeat(rows * cols), (rows, cols), &term, rows);
    }
}

/// Whatever a merged model holds, as a stranger may have written it.
#[test]
fn results_that_no_merge_gave() {
    let mut random = Random::new(24);
    let (rows, cols) = (37, 203);
    for rare in [1, 3, 100] {
        let mut term = Owned::new(&mut random, rows, cols, 4);
        for x in term.a.iter_mut().chain(&mut term.b) {
            if random.below(20 * rare) == 0 {
                *x = special_values()[random.below(special_values().len())];
            }
        }
        let usual = stored(Element::BF16, (0..rows * cols).map(|_| random.normal()));
        let merged: Vec<u8> = usual
            .as_chunks::<2>()
            .0
            .iter()
            .flat_map(|m| if random.below(rare) == 0 { (random.bits() as u16).to_le_bytes() } else { *m })
            .collect();
        let (guess, doubtful) = taken_off(&merged, (rows, cols), term.term(0));
        for variant in Variant::present() {
            let (mut back, mut doubt) = (vec![1; merged.len()], Doubt::default());
            take_off_with(variant, &merged, &mut back, (rows, cols), term.term(0), &mut doubt);
            assert!(back == guess && list(&doubt) == doubtful, "{variant:?} rare {rare}");
        }
    }
}
