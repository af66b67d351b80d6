//! Adapters on other modules do what they did: merged, they give what PEFT made of the adapter as it was.

use std::path::PathBuf;

use lora_tool::adapter::{Adapter, Delta, Facts, Severity};
use lora_tool::layout;
use lora_tool::model::BaseModel;
use lora_tool::ops::retarget::{Form, Parts, Retargeted, retarget};

use crate::fixtures::{Case, Scratch, cases};
use crate::parity::differences_of;

/// What a kind that is not taken apart, or of which too little is known, is refused with.
const REFUSED: [&str; 8] = [
    "which is not taken apart by rows",
    "an adapter for a changed base",
    "whose outputs are not told apart",
    "on some parts of a fused projection only",
    "of one expert",
    "query, key and value have is not known",
    "biases of the parts that are not all added",
    "several changes of one part",
];

fn read(case: &Case) -> Option<Adapter> {
    let base = BaseModel::open(&case.base()).expect("a base");
    let config = base.config_path().zip(base.config.clone());
    let given = layout::Given { base: config, alpha: None };
    Some(layout::open_with(&case.adapter(), None, given).ok()?.adapter)
}

fn written(adapter: &Adapter, scratch: &Scratch) -> PathBuf {
    let (draft, _) = layout::named("peft").and_then(|peft| peft.write(adapter)).expect("a draft");
    let path = scratch.join("adapter");
    layout::save(&draft, &path, &[], false, false).expect("a folder");
    path
}

/// The adapter in a form and then as its base has it, or why not.
fn there_and_back(case: &Case, form: Form) -> Result<Option<(Adapter, usize)>, String> {
    let Some(given) = read(case) else { return Ok(None) };
    let base = BaseModel::open(&case.base()).expect("a base");
    let moved = |done: &Retargeted| done.split + done.fused + done.renamed;
    let done = retarget(&given, form, Parts::All, Some(&base)).and_then(|there| {
        let back = retarget(&there.adapter, Form::Base, Parts::All, Some(&base))?;
        let moved = moved(&there) + moved(&back);
        Ok((back.adapter, moved))
    });
    match done {
        Ok(done) => Ok(Some(done)),
        Err(e) if REFUSED.iter().any(|what| e.what().contains(what)) => Ok(None),
        Err(e) => Err(format!("{form:?}: {e}")),
    }
}

#[test]
fn on_the_modules_of_the_base_every_adapter_does_what_it_did() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("peft").into_iter().filter(Case::expects_merge) {
        for form in [Form::Base, Form::Split, Form::Fused] {
            let (adapter, moved) = match there_and_back(&case, form) {
                Ok(Some(done)) => done,
                Ok(None) => continue,
                Err(e) => {
                    failed.push(format!("{}: {e}", case.name));
                    continue;
                }
            };
            // What does not change is the other tests' concern.
            if moved == 0 {
                continue;
            }
            count += 1;
            let scratch = Scratch::new();
            let found = differences_of(&case, &written(&adapter, &scratch));
            failed.extend(found.into_iter().map(|what| format!("{} {form:?}: {what}", case.name)));
        }
    }
    assert!(failed.is_empty(), "{} faults in {count} cases:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 20, "only {count} cases changed their modules");
}

fn products(adapter: &Adapter) -> Vec<(String, f64, Vec<f32>, Vec<f32>)> {
    let of = |(path, target): (&lora_tool::names::ModulePath, &lora_tool::adapter::Target)| {
        let Some(Delta::LowRank(d)) = target.weight.first() else { panic!("{path}") };
        (path.to_string(), d.factor(), d.a.to_f32().expect("A"), d.b.to_f32().expect("B"))
    };
    adapter.targets.iter().map(of).collect()
}

#[test]
fn what_is_put_together_comes_apart_byte_for_byte() {
    for name in ["lora", "rslora", "mixtral_old", "f16_all"] {
        let case = cases("peft").into_iter().find(|case| case.name == name).expect("a case");
        let given = read(&case).expect("an adapter");
        let fused = retarget(&given, Form::Fused, Parts::All, None).expect("fused");
        let back = retarget(&fused.adapter, Form::Split, Parts::All, None).expect("split");
        assert!(fused.fused > 0, "{name}");
        let names = |adapter: &Adapter| adapter.targets.keys().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&back.adapter), names(&given), "{name}");
        assert!(products(&back.adapter) == products(&given), "{name}");
    }
}

/// Without the base nothing tells whether gate and up lie one after the other or in turns.
#[test]
fn the_order_of_gate_and_up_is_a_guess_without_the_base() {
    let all = cases("peft");
    let case = all.iter().find(|case| case.name == "qwen3_moe_up").expect("the fixture");
    let guessed = |adapter: &Adapter, form| {
        let done = retarget(adapter, form, Parts::All, None).expect("an adapter");
        let note = done
            .notes
            .iter()
            .any(|note| note.severity == Severity::Lossy && note.text.contains("the gate are taken to come first"));
        (done.adapter, note)
    };
    let known = read(case).expect("an adapter");
    let mut unknown = known.clone();
    unknown.base = Facts::default();
    unknown.about.clear();
    let (apart, noted) = guessed(&unknown, Form::Split);
    assert!(noted && guessed(&apart, Form::Fused).1);
    assert!(!guessed(&known, Form::Split).1);
}

/// Attention with latent keys has queries that are no part of anything.
#[test]
fn queries_beside_latent_keys_stay_by_themselves() {
    let all = cases("peft");
    let case = all.iter().find(|case| case.name == "lora").expect("the fixture");
    let mut adapter = read(case).expect("an adapter");
    adapter.targets.retain(|path, _| path.leaf() == "q_proj");
    adapter.base.family = Some("deepseek_v2".to_string());
    let done = retarget(&adapter, Form::Fused, Parts::All, None).expect("an adapter");
    assert_eq!(done.adapter.targets, adapter.targets);
}
