//! The tables: what a module is called on either side, its shape, and how the rows of the two go together.
//!
//! A [`Table`] is made of groups; a group is some places (blocks), each with a path on either side, times the rows that
//! stand in each of them. The left side is the one whose projections are fused, where one of the two is. Each line is
//! used in both directions; the index that finds it is made at the first question.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::extent::{Bounds, Count, Extent, shape, value};
use super::pattern::{Form, captures, fill, join, key};
use super::rows::{Order, Ratio};

/// One of the two namings of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one with fused projections.
    Left,
    /// The one with the parts.
    Right,
}

/// What a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A linear layer, `[out, in]`.
    Linear,
    /// A convolution, `[out, in, kernel...]`.
    Conv,
    /// A norm with a weight.
    Norm,
    /// A table of embeddings.
    Embedding,
    /// A parameter of its own, without a module around it.
    Parameter,
}

/// The names of one module on the right.
#[derive(Clone, Copy, Debug)]
enum Names {
    One(&'static str),
    Many(&'static [&'static str]),
}

impl Names {
    fn as_slice(&self) -> &[&'static str] {
        match self {
            Names::One(name) => std::slice::from_ref(name),
            Names::Many(names) => names,
        }
    }
}

/// A module of a group. A name that ends in `!` is that of a bare parameter; one that ends in `_` has `weight` and
/// `bias` follow without a dot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    left: &'static str,
    right: Names,
    /// Extents of the weight on the left.
    shape: &'static str,
    /// Rows of the parts in relation to each other.
    ratio: &'static [u64],
    order: Order,
    /// The numbers of each `#` in the names of this row.
    counts: &'static [Count],
    embedding: bool,
}

/// A module with a name on either side.
pub(super) const fn row(left: &'static str, right: &'static str, shape: &'static str) -> Row {
    Row { left, right: Names::One(right), shape, ratio: &[1], order: Order::Same, counts: &[], embedding: false }
}

/// A module of the same name on both.
pub(super) const fn same(name: &'static str, shape: &'static str) -> Row {
    row(name, name, shape)
}

/// A module that is several on the right, of as many rows each.
pub(super) const fn fused(left: &'static str, right: &'static [&'static str], shape: &'static str) -> Row {
    const ONES: &[u64] = &[1; 8];
    Row { right: Names::Many(right), ratio: ONES.split_at(right.len()).0, ..row(left, left, shape) }
}

impl Row {
    /// The parts have rows in this relation.
    pub(super) const fn ratio(self, ratio: &'static [u64]) -> Row {
        Row { ratio, ..self }
    }

    /// The halves of the rows change places between the two sides.
    pub(super) const fn swapped(self) -> Row {
        Row { order: Order::SwapHalves, ..self }
    }

    /// The weight is transposed between the two sides.
    pub(super) const fn transposed(self) -> Row {
        Row { order: Order::Transposed, ..self }
    }

    /// The names have a number of their own, after those of the place.
    pub(super) const fn numbered(self, counts: &'static [Count]) -> Row {
        Row { counts, ..self }
    }

    /// It is a table of embeddings.
    pub(super) const fn embedding(self) -> Row {
        Row { embedding: true, ..self }
    }
}

/// Where a group's rows stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    left: &'static str,
    right: &'static str,
    /// The numbers of each `#` in the paths.
    counts: &'static [Count],
    /// Letters that have another value here.
    extents: &'static [Extent],
}

/// A place with numbered blocks.
pub(super) const fn blocks(left: &'static str, right: &'static str, counts: &'static [Count]) -> Place {
    Place { left, right, counts, extents: &[] }
}

/// A place that occurs once.
pub(super) const fn at(left: &'static str, right: &'static str) -> Place {
    blocks(left, right, &[])
}

impl Place {
    /// With letters of its own.
    pub(super) const fn sized(self, extents: &'static [Extent]) -> Place {
        Place { extents, ..self }
    }
}

/// The model itself, as a place.
pub(super) const TOP: &[Place] = &[at("", "")];

/// Rows, and the places where they stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    places: &'static [Place],
    rows: &'static [Row],
    /// A formula that is zero where a variant has none of this.
    when: &'static str,
}

/// These rows in each of these places.
pub(super) const fn group(places: &'static [Place], rows: &'static [Row]) -> Group {
    Group { places, rows, when: "1" }
}

impl Group {
    /// Only where this formula is not zero.
    pub(super) const fn when(self, when: &'static str) -> Group {
        Group { when, ..self }
    }
}

/// Two namings of a model, line by line.
#[derive(Debug)]
pub(super) struct Table {
    groups: &'static [Group],
    index: OnceLock<Index>,
}

/// A row in its place.
#[derive(Debug)]
pub(super) struct Line {
    left: Name,
    right: Vec<Name>,
    group: &'static Group,
    place: &'static Place,
    row: &'static Row,
}

/// A pattern and what follows it in the name of a tensor.
#[derive(Debug)]
struct Name {
    pattern: String,
    ending: Ending,
}

/// What joins the name of a parameter to that of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// A dot: `proj.weight`.
    Dot,
    /// An underscore: `in_proj_weight`.
    Underscore,
    /// Nothing: the path is the name of the parameter.
    Bare,
}

impl Name {
    fn new(place: &str, leaf: &str) -> Name {
        let (leaf, ending) = match (leaf.strip_suffix('!'), leaf.strip_suffix('_')) {
            (Some(leaf), _) => (leaf, Ending::Bare),
            (_, Some(leaf)) => (leaf, Ending::Underscore),
            _ => (leaf, Ending::Dot),
        };
        Name { pattern: join(place, leaf), ending }
    }
}

/// Which blocks have a line.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Whether any has.
    present: bool,
    /// The numbers of each, after the formula they come from.
    counts: Vec<(&'static str, Bounds)>,
}

impl Limits {
    /// Whether blocks of these numbers have it in some model.
    pub(super) fn admit(&self, numbers: &[u64]) -> bool {
        self.present && self.counts.iter().zip(numbers).all(|((_, bounds), number)| bounds.admit(*number))
    }

    /// Whether they do in a whole model.
    pub(super) fn contain(&self, numbers: &[u64]) -> bool {
        self.present && self.counts.iter().zip(numbers).all(|((_, bounds), number)| bounds.contain(*number))
    }

    /// The counts of which one of these is the last. A single block is no count.
    pub(super) fn ends(&self, numbers: &[u64]) -> impl Iterator<Item = &'static str> {
        let last = |((name, bounds), number): (&(&'static str, Bounds), &u64)| bounds.end(*number).then_some(*name);
        self.counts.iter().zip(numbers).filter_map(last)
    }
}

/// Where a pattern is found: the line, and which of the parts on its right.
type Spot = (usize, usize);

#[derive(Debug)]
struct Index {
    lines: Vec<Line>,
    left: HashMap<String, Vec<Spot>>,
    right: HashMap<String, Vec<Spot>>,
}

/// A line that a path belongs to.
#[derive(Clone, Debug)]
pub(super) struct Hit<'t> {
    pub line: &'t Line,
    /// Which of the parts, if the path is one on the right.
    pub part: usize,
    /// The numbers of its blocks.
    pub numbers: Vec<u64>,
}

impl Table {
    pub(super) const fn new(groups: &'static [Group]) -> Table {
        Table { groups, index: OnceLock::new() }
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::new(self.groups))
    }

    pub(super) fn lines(&self) -> &[Line] {
        &self.index().lines
    }

    /// The lines a path can belong to, as far as the extents are known.
    pub(super) fn find(&self, side: Side, path: &str, form: Form, extents: &[Extent]) -> Vec<Hit<'_>> {
        let mut hits = self.find_by_key(side, path, &key(path), form);
        hits.retain(|hit| hit.line.limits(extents).admit(&hit.numbers));
        hits
    }

    /// All lines with its name, of a path whose key is at hand.
    pub(super) fn find_by_key(&self, side: Side, path: &str, key: &str, form: Form) -> Vec<Hit<'_>> {
        let index = self.index();
        let spots = match side {
            Side::Left => index.left.get(key),
            Side::Right => index.right.get(key),
        };
        let hit = |&(line, part): &Spot| {
            let line = index.lines.get(line)?;
            let numbers = captures(line.pattern(side, part)?, path, form)?;
            Some(Hit { line, part, numbers })
        };
        spots.into_iter().flatten().filter_map(hit).collect()
    }
}

impl Index {
    fn new(groups: &'static [Group]) -> Index {
        let mut out = Index { lines: Vec::new(), left: HashMap::new(), right: HashMap::new() };
        for group in groups {
            for place in group.places {
                for row in group.rows {
                    out.push(Line::new(group, place, row));
                }
            }
        }
        out
    }

    fn push(&mut self, line: Line) {
        let number = self.lines.len();
        self.left.entry(key(&line.left.pattern)).or_default().push((number, 0));
        for (part, name) in line.right.iter().enumerate() {
            self.right.entry(key(&name.pattern)).or_default().push((number, part));
        }
        self.lines.push(line);
    }
}

impl Line {
    fn new(group: &'static Group, place: &'static Place, row: &'static Row) -> Line {
        let right = row.right.as_slice().iter().map(|leaf| Name::new(place.right, leaf)).collect();
        Line { left: Name::new(place.left, row.left), right, group, place, row }
    }

    fn name(&self, side: Side, part: usize) -> Option<&Name> {
        match side {
            Side::Left => Some(&self.left),
            Side::Right => self.right.get(part),
        }
    }

    pub(super) fn pattern(&self, side: Side, part: usize) -> Option<&str> {
        self.name(side, part).map(|name| name.pattern.as_str())
    }

    pub(super) fn ending(&self, side: Side, part: usize) -> Ending {
        self.name(side, part).map_or(Ending::Dot, |name| name.ending)
    }

    pub(super) fn path(&self, side: Side, part: usize, numbers: &[u64]) -> String {
        self.pattern(side, part).map_or_else(String::new, |pattern| fill(pattern, numbers))
    }

    /// How many modules it is on a side.
    pub(super) fn parts(&self, side: Side) -> usize {
        match side {
            Side::Left => 1,
            Side::Right => self.right.len(),
        }
    }

    pub(super) fn order(&self) -> Order {
        self.row.order
    }

    pub(super) fn ratio(&self) -> Ratio {
        Ratio(self.row.ratio)
    }

    fn counts(&self) -> impl Iterator<Item = Count> {
        self.place.counts.iter().chain(self.row.counts).copied()
    }

    /// The letters of the model, and after them those of the place.
    fn extents(&self, extents: &[Extent]) -> Vec<Extent> {
        extents.iter().chain(self.place.extents).copied().collect()
    }

    /// Which blocks have it, as far as the extents are known.
    pub(super) fn limits(&self, extents: &[Extent]) -> Limits {
        let extents = self.extents(extents);
        let present = value(self.group.when, &extents) != Some(0);
        Limits { present, counts: self.counts().map(|count| (count.0, count.bounds(&extents))).collect() }
    }

    /// The shape of the weight on a side, as far as the extents are known.
    pub(super) fn shape(&self, side: Side, part: usize, extents: &[Extent]) -> Option<Vec<u64>> {
        let mut shape = shape(self.row.shape, &self.extents(extents))?;
        if side == Side::Right {
            match self.row.order {
                Order::Transposed => shape.reverse(),
                _ => {
                    let rows = shape.first_mut()?;
                    *rows = {
                        let range = Ratio(self.row.ratio).range(part, *rows)?;
                        range.end - range.start
                    };
                }
            }
        }
        Some(shape)
    }

    pub(super) fn kind(&self, side: Side, part: usize) -> Kind {
        let rank = self.row.shape.split(' ').filter(|f| !f.is_empty()).count();
        match (self.ending(side, part), rank) {
            (Ending::Bare, _) => Kind::Parameter,
            _ if self.row.embedding => Kind::Embedding,
            (_, 0 | 1) => Kind::Norm,
            (_, 2) => Kind::Linear,
            _ => Kind::Conv,
        }
    }

    /// The numbers of all blocks that a whole model of these extents has it in. None if they are not known.
    pub(super) fn numbers(&self, extents: &[Extent]) -> Option<Vec<Vec<u64>>> {
        let extents = self.extents(extents);
        if value(self.group.when, &extents)? == 0 {
            return Some(Vec::new());
        }
        let mut out = vec![Vec::new()];
        for count in self.counts() {
            let range = count.range(&extents)?;
            let longer = |one: &Vec<u64>, n| one.iter().copied().chain([n]).collect::<Vec<_>>();
            out = out.iter().flat_map(|one| range.clone().map(|n| longer(one, n)).collect::<Vec<_>>()).collect();
        }
        Some(out)
    }
}
