//! What rounding left of a change, for rows that were computed in f32.

use crate::kernels::Moved;

/// Elements that are summed in f32 before they are added to the f64 sums.
const RUN: usize = 256;
/// Lanes of the sums, so that the compiler can turn them into vector code.
const LANES: usize = 8;

/// Sums over elements: `old` is the base's value, `new` the one before rounding, `stored` the one after. Elements that
/// are not finite are counted and left out of the sums.
pub fn measure(old: &[f32], new: &[f32], stored: &[f32]) -> Moved {
    let mut moved = Moved { elements: stored.len() as u64, ..Moved::default() };
    for ((old, new), stored) in old.chunks(RUN).zip(new.chunks(RUN)).zip(stored.chunks(RUN)) {
        let run = run(old, new, stored);
        let finite = run.wanted.is_finite() && run.along.is_finite();
        moved.add(&if finite { run } else { one_by_one(old, new, stored) });
    }
    moved
}

/// A run whose sums are taken in lanes; they are not finite where an element is not.
fn run(old: &[f32], new: &[f32], stored: &[f32]) -> Moved {
    let (mut wanted, mut along, mut still) = ([0f32; LANES], [0f32; LANES], [0u32; LANES]);
    let (olds, old_rest) = old.as_chunks::<LANES>();
    let (news, new_rest) = new.as_chunks::<LANES>();
    let (storeds, stored_rest) = stored.as_chunks::<LANES>();
    for ((old, new), stored) in olds.iter().zip(news).zip(storeds) {
        for lane in 0..LANES {
            let (w, got) = (new[lane] - old[lane], stored[lane] - old[lane]);
            wanted[lane] += w * w;
            along[lane] += w * got;
            still[lane] += u32::from(got == 0.0);
        }
    }
    let sum = |lanes: [f32; LANES]| lanes.iter().map(|&v| f64::from(v)).sum();
    let mut out = Moved {
        wanted: sum(wanted),
        along: sum(along),
        still: still.iter().map(|&n| u64::from(n)).sum(),
        ..Moved::default()
    };
    out.add(&one_by_one(old_rest, new_rest, stored_rest));
    out
}

fn one_by_one(old: &[f32], new: &[f32], stored: &[f32]) -> Moved {
    let mut out = Moved::default();
    for ((&old, &new), &stored) in old.iter().zip(new).zip(stored) {
        let (wanted, got) = (f64::from(new) - f64::from(old), f64::from(stored) - f64::from(old));
        if stored.is_finite() && wanted.is_finite() {
            out.wanted += wanted * wanted;
            out.along += wanted * got;
        }
        out.still += u64::from(got == 0.0);
        out.nonfinite += u64::from(!stored.is_finite());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_and_single_elements_agree() {
        let old: Vec<f32> = (0..1000).map(|i| (i % 17) as f32 / 8.0).collect();
        let new: Vec<f32> = old.iter().enumerate().map(|(i, v)| v + (i % 5) as f32 / 64.0).collect();
        let stored: Vec<f32> = new.iter().map(|v| (v * 32.0).round() / 32.0).collect();
        let (fast, plain) = (measure(&old, &new, &stored), one_by_one(&old, &new, &stored));
        assert_eq!((fast.still, fast.nonfinite, fast.elements), (plain.still, 0, 1000));
        assert!((fast.wanted - plain.wanted).abs() < 1e-6 * plain.wanted);
        assert!((fast.along - plain.along).abs() < 1e-6 * plain.along);
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let (old, mut new) = (vec![1f32; 300], vec![2f32; 300]);
        new[7] = f32::INFINITY;
        new[299] = f32::NAN;
        let moved = measure(&old, &new, &new);
        assert_eq!((moved.nonfinite, moved.wanted, moved.along), (2, 298.0, 298.0));
    }
}
