//! A part of a model: its denoiser, or one of its text encoders. Where each container keeps it and what its modules are
//! called.

use super::extent::Extent;
use super::pattern::Form;
use super::rows::{Order, Rows};
use super::table::{Ending, Hit, Kind, Line, Side, Table};

/// Which part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The U-Net or transformer that takes the noise away.
    Denoiser,
    /// The CLIP text encoder of OpenAI's ViT-L.
    ClipL,
    /// The text encoder of OpenCLIP, of ViT-H or ViT-bigG.
    OpenClip,
    /// The encoder of T5.
    T5,
    /// A language model that encodes the text.
    Llm,
    /// A network between the text and the denoiser.
    Conditioner,
}

/// A way of naming the modules of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Naming {
    /// That of the model's authors. Text encoders: of the program the checkpoint was written with.
    Native,
    /// That of huggingface/diffusers. Text encoders: of huggingface/transformers.
    Diffusers,
    /// That of ComfyUI where it has one of its own; otherwise the same as `Native`.
    Comfy,
}

/// The kinds of file that names occur in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Container {
    /// Adapters of kohya-ss/sd-scripts and kohya-ss/musubi-tuner: flat paths after `lora_unet_`.
    Kohya,
    /// Adapters and pipelines of diffusers: dotted paths after the name of the component.
    Diffusers,
    /// Adapters with the names ComfyUI has in memory.
    Comfy,
    /// All of a model in one file.
    Checkpoint,
}

/// Where a container keeps a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The container.
    pub container: Container,
    /// What stands before the paths, without the separator; it may be empty.
    pub prefix: &'static str,
    /// The naming of the paths after it.
    pub naming: Naming,
}

impl Home {
    /// What stands between the prefix and a path.
    fn separator(&self) -> char {
        if self.container == Container::Kohya { '_' } else { '.' }
    }

    /// What follows the prefix: a path, flat in kohya's files and dotted elsewhere. None if it does not stand there.
    pub fn strip<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.prefix {
            "" => Some(path),
            prefix => path.strip_prefix(prefix)?.strip_prefix(self.separator()),
        }
    }

    /// A dotted path as it is written here.
    pub fn join(&self, path: &str) -> String {
        let path = if self.container == Container::Kohya { path.replace('.', "_") } else { path.to_owned() };
        if self.prefix.is_empty() { path } else { format!("{}{}{path}", self.prefix, self.separator()) }
    }
}

/// A place in adapters of kohya.
pub(super) const fn kohya(prefix: &'static str, naming: Naming) -> Home {
    Home { container: Container::Kohya, prefix, naming }
}

/// A place in what diffusers writes.
pub(super) const fn diffusers(prefix: &'static str) -> Home {
    Home { container: Container::Diffusers, prefix, naming: Naming::Diffusers }
}

/// A place in adapters for ComfyUI.
pub(super) const fn comfy(prefix: &'static str, naming: Naming) -> Home {
    Home { container: Container::Comfy, prefix, naming }
}

/// A place in a checkpoint of one file.
pub(super) const fn checkpoint(prefix: &'static str, naming: Naming) -> Home {
    Home { container: Container::Checkpoint, prefix, naming }
}

/// A part of a model.
#[derive(Debug)]
pub struct Part {
    /// Which one it is.
    pub role: Role,
    /// Where it is kept; of several places in a container, the first is what to write.
    pub homes: &'static [Home],
    /// Native on the left and diffusers on the right.
    pub(super) table: &'static Table,
    /// ComfyUI on the left and native on the right, where they differ.
    pub(super) comfy: Option<&'static Table>,
    /// A level of modules at the head of the diffusers names that some programs leave out: `text_model`.
    pub(super) optional: &'static str,
    /// Letters that have a value for all variants.
    pub(super) extents: &'static [Extent],
}

/// A module an adapter may touch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Module {
    /// Its path.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// The shape of its weight (`[out, in]`, `[out, in, kernel...]`), if the extents are known.
    pub shape: Option<Vec<u64>>,
    /// What joins the name of a parameter to the path.
    pub ending: Ending,
}

impl Module {
    /// The name of one of its tensors: `proj.weight`.
    pub fn tensor(&self, parameter: &str) -> String {
        match self.ending {
            Ending::Dot => format!("{}.{parameter}", self.path),
            Ending::Underscore => format!("{}_{parameter}", self.path),
            Ending::Bare => self.path.clone(),
        }
    }
}

/// Where (some of) the rows of a module go in another naming.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The module in the other naming.
    pub path: String,
    /// The rows of the module asked about that go there.
    pub take: Rows,
    /// The rows of the target that they are.
    pub put: Rows,
    /// How their order changes; the same change leads back.
    pub order: Order,
}

impl Part {
    /// A part with a table of native and diffusers names.
    pub(super) const fn new(role: Role, table: &'static Table, homes: &'static [Home]) -> Part {
        Part { role, homes, table, comfy: None, optional: "", extents: &[] }
    }

    /// With another table, of ComfyUI's names and the native ones.
    pub(super) const fn with_comfy(self, table: &'static Table) -> Part {
        Part { comfy: Some(table), ..self }
    }

    /// With a level at the head of the diffusers names that may be missing.
    pub(super) const fn optional(self, level: &'static str) -> Part {
        Part { optional: level, ..self }
    }

    /// With extents that all variants share.
    pub(super) const fn sized(self, extents: &'static [Extent]) -> Part {
        Part { extents, ..self }
    }

    /// The places of one container.
    pub fn homes(&self, container: Container) -> impl Iterator<Item = &'static Home> {
        self.homes.iter().filter(move |home| home.container == container)
    }

    /// A level at the head of the diffusers names that some programs leave out.
    pub fn optional_level(&self) -> Option<&'static str> {
        (!self.optional.is_empty()).then_some(self.optional)
    }

    /// The namings that differ.
    pub fn namings(&self) -> &'static [Naming] {
        match self.comfy {
            None => &[Naming::Native, Naming::Diffusers],
            Some(_) => &[Naming::Native, Naming::Diffusers, Naming::Comfy],
        }
    }

    /// Whether two namings have the same name for every module.
    pub fn alike(&self, one: Naming, other: Naming) -> bool {
        one == other
            || self.between(one, other).is_some_and(|(table, from, to)| {
                let name = |line: &Line, side| line.pattern(side, 0).map(str::to_owned);
                from == to
                    || table
                        .lines()
                        .iter()
                        .all(|line| line.parts(Side::Right) == 1 && name(line, from) == name(line, to))
            })
    }

    /// All modules of a whole model of these extents. Lines whose block count is not given are left out.
    pub fn modules(&self, naming: Naming, extents: &[Extent]) -> Vec<Module> {
        let (table, side) = self.column(naming);
        let extents = self.all_extents(extents);
        let of_line = |line: &Line| {
            let numbers = line.numbers(&extents).unwrap_or_default();
            let parts = (0..line.parts(side)).flat_map(|part| numbers.iter().map(move |n| (part, n)));
            parts.map(|(part, n)| module(line, side, part, n, &extents)).collect::<Vec<_>>()
        };
        table.lines().iter().flat_map(of_line).collect()
    }

    /// Patterns of the modules whose number of blocks these extents do not give.
    #[cfg(test)]
    pub(super) fn missing(&self, extents: &[Extent]) -> Vec<String> {
        let extents = self.all_extents(extents);
        let tables = [Some(self.table), self.comfy];
        let lines = tables.into_iter().flatten().flat_map(Table::lines);
        let unknown = lines.filter(|line| line.numbers(&extents).is_none());
        unknown.filter_map(|line| line.pattern(Side::Left, 0).map(str::to_owned)).collect()
    }

    /// The module of a path, as far as the extents are known.
    pub fn module(&self, naming: Naming, path: &str, extents: &[Extent]) -> Option<Module> {
        let (table, side) = self.column(naming);
        let extents = self.all_extents(extents);
        let hits = self.find(table, side, naming, path, Form::Dotted, &extents);
        let modules = hits.iter().map(|hit| module(hit.line, side, hit.part, &hit.numbers, &extents));
        modules.reduce(|a, b| if a.shape == b.shape { a } else { Module { shape: None, ..a } })
    }

    /// Whether a whole model of these extents has the module: the number of its block is below their count.
    pub fn contains(&self, naming: Naming, path: &str, extents: &[Extent]) -> bool {
        let (table, side) = self.column(naming);
        let extents = self.all_extents(extents);
        let hits = self.find(table, side, naming, path, Form::Dotted, &extents);
        hits.iter().any(|hit| hit.line.limits(&extents).contain(&hit.numbers))
    }

    /// The dotted path of a flat one: `double_blocks_0_img_attn_qkv`. An optional level at its head is put in.
    pub fn unflatten(&self, naming: Naming, flat: &str) -> Option<String> {
        let (table, side) = self.column(naming);
        only(self.find(table, side, naming, flat, Form::Flat, &[]).iter().map(|hit| path_of(hit, side)))
    }

    /// What a module is in another naming: one target, or several where its projections are split. None if the path is
    /// none of this part's, or if what it becomes hangs on extents that are not given.
    pub fn translate(&self, from: Naming, to: Naming, path: &str, extents: &[Extent]) -> Option<Vec<Target>> {
        let Some((table, source, target)) = self.between(from, to) else {
            return self.translate_through_native(from, to, path, extents);
        };
        let hits = self.find(table, source, from, path, Form::Dotted, &self.all_extents(extents));
        only(hits.iter().map(|hit| targets(hit, source, target)))
    }

    /// ComfyUI's names and those of diffusers stand in two tables.
    fn translate_through_native(
        &self,
        from: Naming,
        to: Naming,
        path: &str,
        extents: &[Extent],
    ) -> Option<Vec<Target>> {
        let mut out = Vec::new();
        for one in self.translate(from, Naming::Native, path, extents)? {
            for two in self.translate(Naming::Native, to, &one.path, extents)? {
                out.push(one.then(two)?);
            }
        }
        Some(out)
    }

    /// The table that has both of these namings.
    fn between(&self, from: Naming, to: Naming) -> Option<(&'static Table, Side, Side)> {
        let main = |naming| if naming == Naming::Diffusers { Side::Right } else { Side::Left };
        let other = |naming| if naming == Naming::Comfy { Side::Left } else { Side::Right };
        match (self.comfy, from, to) {
            (Some(_), Naming::Comfy, Naming::Diffusers) | (Some(_), Naming::Diffusers, Naming::Comfy) => None,
            (Some(table), Naming::Comfy, _) | (Some(table), _, Naming::Comfy) => Some((table, other(from), other(to))),
            _ => Some((self.table, main(from), main(to))),
        }
    }

    /// All lines a path with this key can belong to, with their side.
    pub(super) fn hits(&self, naming: Naming, path: &str, key: &str, form: Form) -> (Side, Vec<Hit<'static>>) {
        let (table, side) = self.column(naming);
        let hits = table.find_by_key(side, path, key, form);
        if hits.is_empty() && self.has_optional(naming) {
            return (side, table.find(side, &self.with_optional(path, form), form, &[]));
        }
        (side, hits)
    }

    /// The patterns of all names, in all namings.
    pub(super) fn patterns(&self) -> impl Iterator<Item = &'static str> {
        let lines = [Some(self.table), self.comfy].into_iter().flatten().flat_map(Table::lines);
        let of_side =
            |line: &'static Line, side| (0..line.parts(side)).filter_map(move |part| line.pattern(side, part));
        lines.flat_map(move |line| of_side(line, Side::Left).chain(of_side(line, Side::Right)))
    }

    /// Whether a level may be missing at the head of these names.
    fn has_optional(&self, naming: Naming) -> bool {
        !self.optional.is_empty() && naming == Naming::Diffusers
    }

    fn with_optional(&self, path: &str, form: Form) -> String {
        let separator = if form == Form::Flat { '_' } else { '.' };
        format!("{}{separator}{path}", self.optional)
    }

    /// The table and side of a naming.
    fn column(&self, naming: Naming) -> (&'static Table, Side) {
        match (naming, self.comfy) {
            (Naming::Comfy, Some(table)) => (table, Side::Left),
            (Naming::Native | Naming::Comfy, _) => (self.table, Side::Left),
            (Naming::Diffusers, _) => (self.table, Side::Right),
        }
    }

    fn all_extents(&self, extents: &[Extent]) -> Vec<Extent> {
        self.extents.iter().chain(extents).copied().collect()
    }

    /// Lines of a path as it stands, or with the optional level at its head.
    fn find(
        &self,
        table: &'static Table,
        side: Side,
        naming: Naming,
        path: &str,
        form: Form,
        extents: &[Extent],
    ) -> Vec<Hit<'static>> {
        let hits = table.find(side, path, form, extents);
        if hits.is_empty() && self.has_optional(naming) {
            return table.find(side, &self.with_optional(path, form), form, extents);
        }
        hits
    }
}

impl Target {
    /// This way, and from there another.
    fn then(&self, next: Target) -> Option<Target> {
        let take = compose(self.take, next.take, self.put)?;
        let put = compose(next.put, self.put, next.take)?;
        let order = match (self.order, next.order) {
            (one, Order::Same) | (Order::Same, one) => one,
            (one, other) if one == other => Order::Same,
            _ => return None,
        };
        Some(Target { path: next.path, take, put, order })
    }
}

/// Rows `outer` of which `inner` are taken: one of the two has to be all of them, and nothing be narrowed in between.
fn compose(outer: Rows, inner: Rows, narrowed: Rows) -> Option<Rows> {
    match (outer, inner, narrowed) {
        (outer, Rows::Whole, _) => Some(outer),
        (Rows::Whole, inner, Rows::Whole) => Some(inner),
        _ => None,
    }
}

fn module(line: &Line, side: Side, part: usize, numbers: &[u64], extents: &[Extent]) -> Module {
    Module {
        path: line.path(side, part, numbers),
        kind: line.kind(side, part),
        shape: line.shape(side, part, extents),
        ending: line.ending(side, part),
    }
}

fn path_of(hit: &Hit<'_>, side: Side) -> String {
    hit.line.path(side, hit.part, &hit.numbers)
}

/// What a module becomes on the other side of its line.
fn targets(hit: &Hit<'_>, from: Side, to: Side) -> Vec<Target> {
    let line = hit.line;
    let rows = |number| match line.parts(Side::Right) {
        1 => Rows::Whole,
        _ => Rows::Part { number, of: line.ratio() },
    };
    let order = if from == to { Order::Same } else { line.order() };
    let target = |part, take, put| Target { path: line.path(to, part, &hit.numbers), take, put, order };
    match (from, to) {
        (Side::Left, Side::Right) => (0..line.parts(to)).map(|part| target(part, rows(part), Rows::Whole)).collect(),
        (Side::Right, Side::Left) => vec![target(0, Rows::Whole, rows(hit.part))],
        _ => vec![target(hit.part, Rows::Whole, Rows::Whole)],
    }
}

/// The one thing that all of these are.
fn only<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::families::family;
    use super::super::family::Family;
    use super::super::rows::Ratio;
    use super::*;

    fn denoiser(name: &str) -> &'static Part {
        family(name).and_then(Family::denoiser).expect("a family")
    }

    fn paths(targets: Option<Vec<Target>>) -> Vec<String> {
        targets.unwrap_or_default().into_iter().map(|target| target.path).collect()
    }

    #[test]
    fn a_fused_projection_comes_apart_and_together() {
        let flux = denoiser("flux1");
        let apart = flux.translate(Naming::Native, Naming::Diffusers, "single_blocks.40.linear1", &[]).expect("parts");
        let of = Ratio(&[1, 1, 1, 4]);
        let part = |path: &str, number| Target {
            path: format!("single_transformer_blocks.40.{path}"),
            take: Rows::Part { number, of },
            put: Rows::Whole,
            order: Order::Same,
        };
        let want = [part("attn.to_q", 0), part("attn.to_k", 1), part("attn.to_v", 2), part("proj_mlp", 3)];
        assert_eq!(apart, want);
        let together = flux.translate(Naming::Diffusers, Naming::Native, &apart[3].path, &[]).expect("a whole");
        let whole = Target {
            path: "single_blocks.40.linear1".to_owned(),
            take: Rows::Whole,
            put: Rows::Part { number: 3, of },
            order: Order::Same,
        };
        assert_eq!(together, [whole]);
    }

    #[test]
    fn what_hangs_on_the_number_of_blocks_is_not_guessed() {
        let sd3 = denoiser("sd3");
        let path = "joint_blocks.23.context_block.adaLN_modulation.1";
        let order = |extents: &[Extent]| {
            let targets = sd3.translate(Naming::Native, Naming::Diffusers, path, extents)?;
            targets.first().map(|target| target.order)
        };
        assert_eq!(order(&[]), None);
        assert_eq!(order(&[("n", 24)]), Some(Order::SwapHalves));
        assert_eq!(order(&[("n", 38)]), Some(Order::Same));
    }

    #[test]
    fn comfy_and_diffusers_meet_by_way_of_the_native_names() {
        let video = denoiser("hunyuan_video_15");
        let path = "double_blocks.3.txt_attn.qkv";
        let apart = video.translate(Naming::Comfy, Naming::Diffusers, path, &[]).expect("parts");
        let of = Ratio(&[1, 1, 1]);
        assert_eq!(apart[2].path, "transformer_blocks.3.attn.add_v_proj");
        assert_eq!((apart[2].take, apart[2].put), (Rows::Part { number: 2, of }, Rows::Whole));
        let together = video.translate(Naming::Diffusers, Naming::Comfy, &apart[2].path, &[]).expect("a whole");
        assert_eq!((together[0].path.as_str(), together[0].put), (path, Rows::Part { number: 2, of }));
        assert_eq!(paths(video.translate(Naming::Comfy, Naming::Comfy, path, &[])), [path]);
    }

    #[test]
    fn the_optional_level_is_put_in() {
        let clip = family("sd1").and_then(|f| f.part(Role::ClipL)).expect("CLIP");
        let full = "text_model.encoder.layers.7.self_attn.out_proj";
        for flat in ["text_model_encoder_layers_7_self_attn_out_proj", "encoder_layers_7_self_attn_out_proj"] {
            assert_eq!(clip.unflatten(Naming::Diffusers, flat).as_deref(), Some(full));
        }
        let short = "encoder.layers.7.self_attn.out_proj";
        assert_eq!(paths(clip.translate(Naming::Diffusers, Naming::Diffusers, short, &[])), [full]);
    }

    #[test]
    fn the_projection_of_open_clip_has_no_dot_before_weight() {
        let clip = family("sdxl").and_then(|f| f.part(Role::OpenClip)).expect("OpenCLIP");
        let module = clip.module(Naming::Native, "transformer.resblocks.31.attn.in_proj", &[]).expect("a module");
        assert_eq!(module.tensor("weight"), "transformer.resblocks.31.attn.in_proj_weight");
        assert_eq!(module.shape, Some(vec![3840, 1280]));
        let last = clip.module(Naming::Native, "text_projection", &[]).expect("a parameter");
        assert_eq!((last.tensor("weight").as_str(), last.kind), ("text_projection", Kind::Parameter));
    }

    #[test]
    fn some_models_are_called_the_same_by_everybody() {
        assert!(denoiser("qwen_image").alike(Naming::Native, Naming::Diffusers));
        assert!(denoiser("flux1").alike(Naming::Native, Naming::Comfy));
        assert!(!denoiser("flux1").alike(Naming::Native, Naming::Diffusers));
        assert!(!denoiser("qwen_image_21").alike(Naming::Comfy, Naming::Native));
    }

    #[test]
    fn names_of_nobody_have_no_translation() {
        let flux = denoiser("flux1");
        for path in
            ["", ".", "double_blocks.x.img_attn.qkv", "double_blocks.0.img_attn", "double_blocks.0.img_attn.qkv."]
        {
            assert_eq!(flux.translate(Naming::Native, Naming::Diffusers, path, &[]), None, "{path}");
            assert_eq!(flux.unflatten(Naming::Native, path), None, "{path}");
        }
    }
}
