//! What does not fit is refused, kind by kind.

use crate::adapter::Scale;
use crate::adapter::delta::{
    Circulant, Deft, Delta, Fourier, Glora, Hira, Kasa, LowRank, Miss, Osf, Qalora, Road, Site, Sparse,
    wavelet::Wavelet,
};
use crate::adapter::delta::{deft::Decomposition, glora::Letter, miss::Mode, road::Variant, sparse::Positions};
use crate::tensor::{Dtype, Shape, Tensor};

fn tensor(dims: &[usize]) -> Tensor {
    Tensor::from_f32(Dtype::F32, dims, &vec![1.0; dims.iter().product()]).unwrap()
}

fn integers(dims: &[usize], values: &[i32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::new(Dtype::I32, dims.into(), bytes.into()).unwrap()
}

fn road(count: usize, group: usize) -> Delta {
    Delta::Road(Road { theta: tensor(&[count]), alpha: tensor(&[count]), variant: Variant::One, group })
}

fn miss(dims: &[usize], mode: Mode) -> Delta {
    Delta::Miss(Miss { block: tensor(dims), mode })
}

fn sparse(positions: Positions) -> Delta {
    Delta::Sparse(Sparse { values: tensor(&[2]), positions, scaling: 1.0 })
}

fn fourier(count: usize) -> Delta {
    Delta::Fourier(Fourier { spectrum: tensor(&[count]), seed: 0, scaling: 1.0 })
}

fn deft(p: &[usize], r: &[usize]) -> Delta {
    let (p, r) = (tensor(p), Some(tensor(r)));
    Delta::Deft(Deft { p, r, decomposition: Decomposition::Qr, scale: 1.0 })
}

#[test]
fn what_does_not_fit_is_refused() {
    let factors = |r, rows, cols| LowRank {
        a: tensor(&[r, cols]),
        b: tensor(&[rows, r]),
        scale: Scale::direct(1.0),
        experts: None,
        name: "LoRA",
    };
    let bias = Glora::Bias { c: Some(Letter::Plain(tensor(&[1]))), d: None, e: None };
    // For a weight of [4, 6].
    for delta in [
        Delta::Circulant(Circulant { kernel: tensor(&[2, 2, 2]) }),
        Delta::Circulant(Circulant { kernel: tensor(&[4, 6]) }),
        Delta::Hira(Hira { a: tensor(&[2, 4]), b: tensor(&[6, 2]) }),
        Delta::Hira(Hira { a: tensor(&[2, 6]), b: tensor(&[4, 3]) }),
        Delta::Kasa(Kasa { factors: factors(4, 4, 6), diagonal: tensor(&[4]) }),
        Delta::Kasa(Kasa { factors: factors(2, 4, 6), diagonal: tensor(&[3]) }),
        Delta::Osf(Osf { u: tensor(&[4, 5]), s: tensor(&[5]), v: tensor(&[5, 6]) }),
        Delta::Osf(Osf { u: tensor(&[4, 2]), s: tensor(&[2]), v: tensor(&[2, 5]) }),
        Delta::Glora(Glora::Weight { a: Some(Letter::Plain(tensor(&[6, 1]))), b: None }),
        Delta::Glora(Glora::Weight { a: Some(Letter::Product(tensor(&[4, 2]), tensor(&[3, 6]))), b: None }),
        Delta::Glora(bias),
        Delta::Qalora(Qalora { factors: factors(2, 4, 3), group: 3 }),
        Delta::Qalora(Qalora { factors: factors(2, 4, 3), group: usize::MAX }),
        road(2, 3),
        road(2, 0),
        road(3, 2),
        road(2, usize::MAX - 1),
        miss(&[2, 6], Mode::Shared),
        miss(&[7, 4], Mode::Shared),
        miss(&[2, 3], Mode::Mini),
        miss(&[2], Mode::Mini),
        miss(&[2, 2, 3], Mode::Bat),
        miss(&[1, 4, 4], Mode::Bat),
        fourier(25),
        deft(&[5, 2], &[2, 6]),
        deft(&[4, 5], &[5, 6]),
        deft(&[4, 2], &[2, 4]),
        sparse(Positions::Pairs(integers(&[2, 2], &[0, 4, 0, 0]))),
        sparse(Positions::Pairs(integers(&[2, 2], &[0, -1, 0, 0]))),
        sparse(Positions::Pairs(integers(&[2], &[0, 1]))),
        sparse(Positions::Pairs(Tensor::from_f32(Dtype::F32, [2, 2], &[0.0, 0.5, 0.0, 0.0]).unwrap())),
        sparse(Positions::Pairs(Tensor::from_f32(Dtype::F32, [2, 2], &[0.0, f32::NAN, 0.0, 0.0]).unwrap())),
        sparse(Positions::Flat(integers(&[2], &[0, 24]))),
        sparse(Positions::Flat(integers(&[2], &[0, i32::MIN]))),
    ] {
        let shape = Shape::new([4, 6]);
        assert!(delta.prepare(&Site { shape: &shape, companion: None }).is_err(), "{delta:?}");
    }
}

#[test]
fn kinds_for_matrices_refuse_everything_else() {
    let drawn = Positions::Drawn { seed: 1, wavelet: Some(Wavelet::named("db3").unwrap()) };
    for dims in [&[][..], &[4], &[4, 3, 2], &[0, 6], &[4, 0]] {
        let shape = Shape::new(dims);
        let site = Site { shape: &shape, companion: None };
        for delta in [fourier(1), sparse(drawn.clone()), miss(&[2, 4], Mode::Shared), deft(&[4, 1], &[1, 6])] {
            assert!(delta.prepare(&site).is_err(), "{delta:?} on {shape}");
        }
    }
}
