//! Changes that become whole tensors: of a bias that depend on the bias or the weight as it was, and of weights that
//! are no matrix. f32, which holds what `merge` has before it rounds.

use super::change::{Weight, read};
use super::place::{Place, missing, require_numbers};
use crate::adapter::Target;
use crate::adapter::delta::{Act, Delta, Full, full::Mode};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::model::BaseModel;
use crate::names::{Found, ModulePath};
use crate::ops::extract::view::View;
use crate::tensor::{Dtype, Shape, Tensor};

/// The weight after the change.
pub fn weight(base: &BaseModel, target: &Target, place: &Place, kernels: &dyn Kernels) -> Result<Delta> {
    let act = target.weight_action(&place.stored, place.transposed)?.into_act()?;
    replaced(base, &place.found, act.as_ref(), kernels)
}

/// The bias after the change; none where the layer has none and nothing comes of that.
pub fn bias(base: &BaseModel, path: &ModulePath, target: &Target, kernels: &dyn Kernels) -> Result<Option<Delta>> {
    let name = path.tensor("bias");
    let Some(found) = base.names.find(&name).or_else(|| base.names.find(&path.tensor("in_proj_bias"))) else {
        let product = |delta: &Delta| matches!(delta, Delta::Rescale(_) | Delta::Road(_));
        return if target.bias.iter().all(product) { Ok(None) } else { Err(missing(base, &name)) };
    };
    require_numbers(base, &found)?;
    let weight = base.names.find(&path.tensor("weight"));
    let companion = weight.as_ref().and_then(Found::plain).map_or(Ok(None), |key| base.numbers(key))?;
    let act = target.bias_action(&Shape::new(found.memory_shape.clone()), companion.as_ref())?.into_act()?;
    replaced(base, &found, act.as_ref(), kernels).map(Some)
}

fn replaced(base: &BaseModel, found: &Found, act: &dyn Act, kernels: &dyn Kernels) -> Result<Delta> {
    let view = View::new(base, found, None)?;
    let rows = 0..view.dim().0;
    let mut values = read(&view, rows.clone())?;
    act.act(kernels, rows, values.view_mut(), &Weight { view: &view, first: 0 })?;
    let values = values.as_slice().ok_or_else(|| Error::mismatch("values that are not contiguous"))?;
    let tensor = Tensor::from_f32(Dtype::F32, found.memory_shape.as_slice(), values)?;
    Ok(Delta::Full(Full { tensor, mode: Mode::Replace }))
}
