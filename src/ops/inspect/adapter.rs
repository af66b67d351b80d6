//! An adapter: what it changes, by how much, and what is wrong with it.

use std::collections::BTreeMap;

use super::{Share, layer_of};
use crate::adapter::{Adapter, Delta, Target};
use crate::error::{Context, Kind, Result};
use crate::kernels::Kernels;
use crate::linalg::product;

/// Scales outside of this range are unusual enough to be named.
const USUAL_SCALE: std::ops::RangeInclusive<f64> = 1e-3..=64.0;

/// An adapter in numbers.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// What kind it says it is.
    pub declared: String,
    /// What it says about itself.
    pub about: BTreeMap<String, String>,
    /// Targets, in order of their paths.
    pub targets: Vec<TargetSummary>,
    /// Number of targets of each kind.
    pub kinds: BTreeMap<&'static str, usize>,
    /// Number of targets with each last component of their path.
    pub modules: BTreeMap<String, usize>,
    /// Number of different layers that are adapted.
    pub layers: usize,
    /// Tensors by element type.
    pub dtypes: BTreeMap<String, Share>,
    /// All tensors together.
    pub total: Share,
    /// What is wrong or odd, with the path.
    pub problems: Vec<(String, String)>,
}

/// One adapted module.
#[derive(Clone, Debug)]
pub struct TargetSummary {
    /// Module path.
    pub path: String,
    /// Kind of change.
    pub kind: &'static str,
    /// Shape of the changed weight as a matrix, where the kind tells it.
    pub shape: Option<(usize, usize)>,
    /// Rank.
    pub rank: Option<usize>,
    /// Stored alpha.
    pub alpha: Option<f64>,
    /// The multiplier that alpha and rank yield.
    pub scale: Option<f64>,
    /// Element type of the first tensor.
    pub dtype: String,
    /// Elements of all its tensors.
    pub elements: u64,
    /// Singular values of the change, scale included, largest first.
    pub singular_values: Option<Vec<f32>>,
}

impl TargetSummary {
    /// Frobenius norm of the change.
    pub fn norm(&self) -> Option<f64> {
        self.singular_values.as_deref().map(product::frobenius)
    }

    /// Stable rank of the change.
    pub fn stable_rank(&self) -> Option<f64> {
        self.singular_values.as_deref().and_then(product::stable_rank)
    }
}

/// The least number of singular values, the largest first, that hold this share of their energy.
pub fn rank_for(singular_values: &[f32], share: f64) -> usize {
    let squares = || singular_values.iter().map(|&s| f64::from(s).powi(2));
    let wanted = share * squares().sum::<f64>() * (1.0 - 1e-12);
    let mut sum = 0.0;
    let enough = squares().position(|square| {
        sum += square;
        sum >= wanted
    });
    enough.map_or(0, |last| if sum > 0.0 { last + 1 } else { 0 })
}

/// Looks at every target. Norms come from the factors; no change is formed.
pub fn summarise(adapter: &Adapter, kernels: &dyn Kernels) -> Result<AdapterSummary> {
    let mut out = AdapterSummary {
        declared: adapter.declared.clone(),
        about: adapter.about.clone(),
        targets: Vec::with_capacity(adapter.targets.len()),
        kinds: BTreeMap::new(),
        modules: BTreeMap::new(),
        layers: 0,
        dtypes: BTreeMap::new(),
        total: Share::default(),
        problems: Vec::new(),
    };
    let mut layers = std::collections::BTreeSet::new();
    for (path, target) in &adapter.targets {
        let summary = target_summary(path.as_str(), target, kernels, &mut out.problems)?;
        *out.kinds.entry(summary.kind).or_default() += 1;
        *out.modules.entry(path.leaf().to_string()).or_default() += 1;
        layers.extend(layer_of(path.as_str()));
        for (_, tensor) in target.tensors() {
            out.dtypes.entry(tensor.dtype.to_string()).or_default().add(tensor);
            out.total.add(tensor);
        }
        out.targets.push(summary);
    }
    out.layers = layers.len();
    if let Some(method) = &adapter.residual_base {
        let what = if adapter.clone().restore_base().is_ok() {
            format!("initialised by {method} from the base: a merge takes its start out of the base again")
        } else {
            format!("initialised by {method}, which changed the base before training: right only on that base")
        };
        out.problems.push((String::new(), what));
    }
    Ok(out)
}

fn target_summary(
    path: &str,
    target: &Target,
    kernels: &dyn Kernels,
    problems: &mut Vec<(String, String)>,
) -> Result<TargetSummary> {
    let tensors = target.tensors();
    let first = tensors.first().map(|(_, t)| t.dtype.to_string()).unwrap_or_default();
    let mut out = TargetSummary {
        path: path.to_string(),
        kind: target.kind(),
        shape: None,
        rank: None,
        alpha: None,
        scale: None,
        dtype: first,
        elements: tensors.iter().map(|(_, t)| t.elements() as u64).sum(),
        singular_values: None,
    };
    for (role, tensor) in &tensors {
        if let Some((count, _)) = tensor.nonfinite()? {
            problems.push((path.to_string(), format!("{count} values of {role} are NaN or infinite")));
            return Ok(out);
        }
    }
    for delta in target.weight.iter().chain(&target.bias) {
        if let Delta::Opaque(d) = delta {
            problems.push((path.to_string(), format!("{} cannot be merged: {}", d.kind, d.reason)));
        }
        let found = match delta.spectrum(kernels) {
            // Values of which no norm can be formed, since it would be beyond the range.
            Err(e) if matches!(e.kind(), Kind::Unsupported | Kind::Limit) => {
                problems.push((path.to_string(), e.what().to_string()));
                continue;
            }
            found => found.at_key(path)?,
        };
        if let Some(spectrum) = found {
            out.rank = Some(spectrum.rank);
            out.alpha = Some(spectrum.scale.alpha);
            out.scale = Some(spectrum.factor);
            out.shape = Some(spectrum.shape);
            look_at_scale(path, spectrum.factor, &spectrum.values, problems);
            out.singular_values = (!spectrum.values.is_empty()).then_some(spectrum.values);
        }
    }
    Ok(out)
}

fn look_at_scale(path: &str, scale: f64, values: &[f32], problems: &mut Vec<(String, String)>) {
    if !values.is_empty() && product::frobenius(values) == 0.0 {
        problems.push((path.to_string(), "changes nothing: a factor is all zeros".to_string()));
    } else if !USUAL_SCALE.contains(&scale.abs()) {
        problems.push((path.to_string(), format!("unusual scale {scale}")));
    }
}

#[cfg(test)]
mod tests {
    use super::rank_for;

    #[test]
    fn energy_is_counted_from_the_largest() {
        // Squares 16, 4, 4, 1 of 25.
        let s = [4.0, 2.0, 2.0, 1.0];
        assert_eq!([0.5, 0.64, 0.8, 0.9, 0.99, 1.0].map(|share| rank_for(&s, share)), [1, 1, 2, 3, 4, 4]);
        assert_eq!((rank_for(&[], 0.9), rank_for(&[0.0, 0.0], 0.9)), (0, 0));
    }
}
