//! One change of one tensor in memory, made ready when it is needed and let go afterwards.
//!
//! Factors are widened to f32 while their tensors are being written and not before, so that an adapter of any size
//! costs the memory of the few targets at work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::adapter::{Action, Target};
use crate::error::{Context, Result};
use crate::names::{ModulePath, Piece};
use crate::tensor::{Shape, Tensor};

/// Which tensor of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its weight, or the parameter itself.
    Weight,
    /// Its bias.
    Bias,
}

/// What one adapter does to one tensor of the model in memory.
pub struct Source {
    /// The adapter's name in messages.
    pub adapter: String,
    /// Its number in the order given.
    pub number: usize,
    /// Module path as the adapter spells it.
    pub path: ModulePath,
    /// What is done to the module.
    pub target: Arc<Target>,
    /// Which of its tensors.
    pub part: Part,
    /// Shape of the tensor in memory.
    pub stored: Shape,
    /// Whether it is the transpose of what the deltas are written for.
    pub transposed: bool,
    /// For a bias: the weight of the module in the base.
    pub companion: Option<Tensor>,
    /// The user's multiplier, of which the target has its [`share`](Target::share).
    pub strength: f64,
    /// The action, while it is in use.
    pub ready: Ready,
}

/// A cell for the action.
#[derive(Default)]
pub struct Ready {
    cell: Mutex<Option<Arc<Action>>>,
    users: AtomicUsize,
    checked: AtomicUsize,
}

impl Source {
    /// What the change is multiplied by.
    pub fn total(&self) -> f64 {
        self.strength * self.target.share.0
    }

    /// The action, made on first use.
    pub fn action(&self) -> Result<Arc<Action>> {
        let mut cell = self.ready.cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(action) = &*cell {
            return Ok(Arc::clone(action));
        }
        let made = match self.part {
            Part::Weight => self.target.weight_action(&self.stored, self.transposed),
            Part::Bias => self.target.bias_action(&self.stored, self.companion.as_ref()),
        };
        let action = Arc::new(made.at_key(self.path.as_str())?);
        *cell = Some(Arc::clone(&action));
        Ok(action)
    }

    /// One more tensor on disk will ask for the action.
    pub fn expect_user(&self) {
        self.ready.users.fetch_add(1, Ordering::Relaxed);
    }

    /// One of them has been checked against the base; after the last the action is let go until the writing.
    pub fn checked(&self) {
        let checked = self.ready.checked.fetch_add(1, Ordering::AcqRel) + 1;
        if checked >= self.ready.users.load(Ordering::Relaxed) {
            self.forget();
        }
    }

    /// One of them is finished; after the last the action is let go.
    pub fn release(&self) {
        if self.ready.users.fetch_sub(1, Ordering::AcqRel) <= 1 {
            self.forget();
        }
    }

    fn forget(&self) {
        *self.ready.cell.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for (_, tensor) in self.target.tensors() {
            tensor.bytes.release(0..tensor.bytes.len());
        }
    }
}

/// A source's effect on one tensor on disk.
#[derive(Clone)]
pub struct Edit {
    /// Where it comes from.
    pub source: Arc<Source>,
    /// Which part of the tensor in memory lies where on disk.
    pub piece: Piece,
}
