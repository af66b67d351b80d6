//! loralib: the tensors of `lora_state_dict`, pickled, and nothing else: the scale is not in the file. Read only.
//!
//! Defined by microsoft/LoRA, `loralib/{layers,utils}.py`; written down in `docs/layouts/loralib.md`. A file says neither
//! of what class a layer was nor which parts of a merged one are adapted: the shapes tell it as far as they do.

use std::collections::BTreeMap;

use crate::adapter::delta::{Delta, Full, LowRank, full::Mode};
use crate::adapter::{Adapter, Carried, Facts, Note, Scale, ScaleRule, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict, grouped};
use crate::names::ModulePath;
use crate::tensor::{Tensor, rearrange};

/// The API's alpha where none is given.
const DEFAULT_ALPHA: f64 = 1.0;
/// Families whose layers are `Conv1D`, for which loralib's layers are made with `fan_in_fan_out`.
const TURNED: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
/// Names of embeddings. Their factors have the shapes of a layer's.
const EMBEDDINGS: [&str; 10] = [
    "embed",
    "embed_tokens",
    "embedding",
    "embeddings",
    "position_embeddings",
    "shared",
    "tok_embeddings",
    "word_embeddings",
    "wpe",
    "wte",
];
/// What only LitGPT calls modules of `transformer.h.N`.
const LITGPT: [&str; 8] =
    [".attn.qkv.", ".attn.attn.", ".attn.proj.", ".mlp.fc.", ".mlp.fc_1.", ".mlp.fc_2.", ".mlp.proj.", ".mlp.experts."];

/// The layout.
pub struct Loralib;

/// True for keys of factors.
fn is_lora_key(key: &str) -> bool {
    (key.ends_with(".lora_A") || key.ends_with(".lora_B"))
        && !key.contains(".loras.")
        && !key.contains("shared_parameters.")
}

impl Layout for Loralib {
    fn name(&self) -> &'static str {
        "loralib"
    }

    fn about(&self) -> &'static str {
        "loralib (microsoft/LoRA): a pickled lora_state_dict"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Ranks | Content::Embeddings | Content::Convolutions | Content::Biases => {
                Holding::Yes
            }
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() || source.config.is_some() {
            return Verdict::No;
        }
        let keys = || source.tensors.keys();
        let ours = keys().filter(|key| is_lora_key(key)).count();
        let adalora = keys().any(|key| key.ends_with(".lora_E"));
        let litgpt =
            keys().any(|key| key.starts_with("transformer.h.") && LITGPT.iter().any(|name| key.contains(name)));
        if ours == 0 || adalora || litgpt {
            return Verdict::No;
        }
        Verdict::Likely {
            score: 60,
            because: format!("{ours} of {} keys end in lora_A or lora_B", source.tensors.len()),
        }
    }

    fn looks_aside(&self) -> bool {
        true
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read(source)
    }

    fn can_write(&self) -> bool {
        false
    }

    fn write(&self, _: &Adapter) -> Result<(Draft, Vec<Note>)> {
        Err(Error::unsupported("loralib's layout is read, not written"))
    }
}

/// The tensors of one module.
#[derive(Clone, Debug, Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    bias: Option<Tensor>,
}

fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let mut notes = Vec::new();
    for value in &source.other_values {
        notes.push(Note::info(value, "not a tensor; left out"));
    }
    let alpha = source.given.alpha.unwrap_or_else(|| {
        let what =
            format!("not in such a file; {DEFAULT_ALPHA} taken, the default of loralib; --assume-alpha gives another");
        notes.push(Note::lossy("alpha", what));
        DEFAULT_ALPHA
    });
    let adapter = Adapter { declared: "LoRA".to_string(), kernels_by_row: true, ..Adapter::default() };
    let mut reader = Reader { alpha, facts: source.facts(), adapter, notes };
    for (path, parts) in sort(source).in_file(&source.tensor_file)? {
        reader.module(&path, parts).at_key(&path).in_file(&source.tensor_file)?;
    }
    let Reader { mut adapter, notes, .. } = reader;
    if let Some(base) = source.base_fingerprint()? {
        adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
    }
    adapter.carried = Carried { layout: "loralib".to_string(), outline: adapter.outline(), ..Carried::default() };
    Ok((adapter, notes))
}

/// Takes every key apart. The bias of a convolution is that of the module inside loralib's.
fn sort(source: &Source) -> Result<BTreeMap<String, Parts>> {
    let mut out: BTreeMap<String, Parts> = BTreeMap::new();
    for (key, tensor) in &source.tensors {
        let unknown = || {
            let what = format!("a tensor {} that is none of lora_A, lora_B, bias", tensor.shape);
            Error::unrecognised(what).at_key(key).hint("save what loralib.lora_state_dict(model) gives")
        };
        let (path, leaf) = key.rsplit_once('.').ok_or_else(unknown)?;
        let inner = path.strip_suffix(".conv").filter(|outer| source.tensors.contains_key(&format!("{outer}.lora_A")));
        match leaf {
            "lora_A" => out.entry(path.to_string()).or_default().a = Some(tensor.clone()),
            "lora_B" => out.entry(path.to_string()).or_default().b = Some(tensor.clone()),
            "bias" => {
                let place = &mut out.entry(inner.unwrap_or(path).to_string()).or_default().bias;
                if place.replace(tensor.clone()).is_some() {
                    return Err(Error::malformed("the second bias of its module").at_key(key));
                }
            }
            _ => return Err(unknown()),
        }
    }
    Ok(out)
}

struct Reader {
    alpha: f64,
    facts: Facts,
    adapter: Adapter,
    notes: Vec<Note>,
}

impl Reader {
    fn module(&mut self, path: &str, parts: Parts) -> Result<()> {
        let mut target = Target::default();
        if let Some(tensor) = parts.bias {
            target.bias.push(Delta::Full(Full { tensor, mode: Mode::Replace }));
        }
        match (parts.a, parts.b) {
            (Some(a), Some(b)) => {
                let (factors, site) = self.factors(path, &a, &b)?;
                target.site = site;
                target.weight.push(Delta::LowRank(factors));
            }
            (None, None) => {}
            (Some(_), None) => return Err(Error::missing("has lora_A and no lora_B")),
            (None, Some(_)) => return Err(Error::missing("has lora_B and no lora_A")),
        }
        self.adapter.targets.insert(ModulePath::from(path), target);
        Ok(())
    }

    fn factors(&mut self, path: &str, a: &Tensor, b: &Tensor) -> Result<(LowRank, SiteKind)> {
        let leaf = path.rsplit('.').next().unwrap_or_default();
        let groups = grouped::count(a, b)?;
        let turned = self.facts.family.as_deref().is_some_and(|family| TURNED.contains(&family));
        let layer = if turned { SiteKind::FanInFanOut } else { SiteKind::Layer };
        let scale = Scale { alpha: self.alpha, rule: ScaleRule::AlphaOverRank };
        let plain = || LowRank { a: a.clone(), b: b.clone(), scale, experts: None, name: "LoRA" };
        if groups > 1 {
            let enabled = self.enabled(path, leaf, groups, b)?;
            let factor = scale.factor(rearrange::matrix(b)?.1);
            return Ok((grouped::whole(a, b, &enabled, factor)?, layer));
        }
        if grouped::is_attention(leaf) && self.is_one_of_three(b)? {
            let what = "factors of one of query, key and value, and the file does not say of which";
            return Err(Error::unsupported(what));
        }
        if EMBEDDINGS.contains(&leaf) {
            return Ok((plain(), SiteKind::Embedding));
        }
        Ok((plain(), layer))
    }

    /// Which blocks of a merged layer the groups belong to. Query and value are what the method's paper adapts, and all
    /// its examples.
    fn enabled(&mut self, path: &str, leaf: &str, groups: usize, b: &Tensor) -> Result<Vec<bool>> {
        match (grouped::is_attention(leaf), groups) {
            (true, 3) => Ok(vec![true; 3]),
            (true, 2) => {
                if let Some(total) = self.total()
                    && rearrange::matrix(b)?.0.checked_mul(3) != total.checked_mul(2)
                {
                    let what = format!("lora_B {} of two of three equal parts, the base's have {total} rows", b.shape);
                    return Err(Error::mismatch(what));
                }
                self.notes
                    .push(Note::lossy(path, "two groups of factors, taken for query and value; the file does not say"));
                Ok(vec![true, false, true])
            }
            _ => {
                self.notes
                    .push(Note::lossy(path, format!("{groups} groups of factors, taken for all parts of the layer")));
                Ok(vec![true; groups])
            }
        }
    }

    /// Rows of query, key and value together, where they are known.
    fn total(&self) -> Option<usize> {
        self.facts.attention_rows()?.iter().try_fold(0usize, |sum, rows| sum.checked_add(*rows))
    }

    fn is_one_of_three(&self, b: &Tensor) -> Result<bool> {
        let rows = rearrange::matrix(b)?.0;
        Ok(self.total().is_some_and(|total| rows.checked_mul(3) == Some(total)))
    }
}
