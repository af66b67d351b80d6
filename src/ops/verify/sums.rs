//! What is summed up over the elements of a changed tensor, and over all of them.

/// How far elements are from the correctly rounded merge.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Off {
    /// Elements that are the neighbour of the right value.
    pub by_one: u64,
    /// Elements that are farther off than that.
    pub by_more: u64,
    /// Elements that are farther off than rounding at another place, or in another order, can bring about.
    pub beyond: u64,
    /// Most values between an element and the right one, which counts itself.
    pub max_ulps: u64,
    /// The element that is farthest off: by how many units of rounding, and its number in the tensor.
    pub worst: Option<(f64, u64)>,
}

/// Sums of normal equations: the changes Δₖ against the difference D.
#[derive(Clone, Debug, Default)]
pub struct Equations {
    /// ‖D‖².
    pub square: f64,
    /// ⟨Δₖ, D⟩.
    pub along: Vec<f64>,
    /// ⟨Δₖ, Δₗ⟩, row-major.
    pub gram: Vec<f64>,
}

/// Everything that is summed up.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Elements.
    pub elements: u64,
    /// Elements with a NaN or an infinity on one side, which are left out of the sums below.
    pub left_out: u64,
    /// Distances from the correctly rounded merge.
    pub off: Off,
    /// In units of value.
    pub plain: Equations,
    /// Each element divided by its unit of rounding.
    pub units: Equations,
    /// As `units.along`, with the correctly rounded merge in the place of the file.
    pub rounded: Vec<f64>,
    /// Σ unit² / 12: the square of what rounding alone adds.
    pub noise: f64,
}

impl Off {
    /// Adds another part.
    pub fn add(&mut self, other: &Off) {
        self.by_one += other.by_one;
        self.by_more += other.by_more;
        self.beyond += other.beyond;
        self.max_ulps = self.max_ulps.max(other.max_ulps);
        let farther = |a: f64| self.worst.is_none_or(|(b, _)| a > b);
        if let Some((units, at)) = other.worst.filter(|(units, _)| farther(*units)) {
            self.worst = Some((units, at));
        }
    }
}

impl Equations {
    /// Zeros for `count` changes.
    pub fn new(count: usize) -> Equations {
        Equations { square: 0.0, along: vec![0.0; count], gram: vec![0.0; count * count] }
    }

    /// Adds a part of as many changes.
    fn add(&mut self, other: &Equations) {
        self.square += other.square;
        add(&mut self.along, &other.along);
        add(&mut self.gram, &other.gram);
    }

    /// Adds a part in which change i is number `numbers[i]` here.
    fn spread(&mut self, other: &Equations, numbers: &[usize]) {
        let (here, there) = (self.along.len(), numbers.len());
        self.square += other.square;
        for (i, &k) in numbers.iter().enumerate() {
            self.along[k] += other.along[i];
            for (j, &l) in numbers.iter().enumerate() {
                self.gram[k * here + l] += other.gram[i * there + j];
            }
        }
    }
}

impl Sums {
    /// Zeros for `count` changes.
    pub fn new(count: usize) -> Sums {
        let equations = Equations::new(count);
        Sums { plain: equations.clone(), units: equations, rounded: vec![0.0; count], ..Sums::default() }
    }

    /// Whether no element spoils a sum. Squares tell: what is not finite in a factor is not in its square.
    pub fn is_finite(&self) -> bool {
        let all = [&self.plain.gram, &self.units.gram, &self.rounded];
        let squares = [self.plain.square, self.units.square];
        squares.iter().chain(all.into_iter().flatten()).all(|v| v.is_finite())
    }

    /// Adds another part of the same tensor.
    pub fn add(&mut self, other: &Sums) {
        self.elements += other.elements;
        self.left_out += other.left_out;
        self.off.add(&other.off);
        self.plain.add(&other.plain);
        self.units.add(&other.units);
        add(&mut self.rounded, &other.rounded);
        self.noise += other.noise;
    }

    /// Adds the sums of a tensor whose change i is number `numbers[i]` here.
    pub fn spread(&mut self, other: &Sums, numbers: &[usize]) {
        self.elements += other.elements;
        self.left_out += other.left_out;
        self.off.add(&other.off);
        self.plain.spread(&other.plain, numbers);
        self.units.spread(&other.units, numbers);
        for (i, &k) in numbers.iter().enumerate() {
            self.rounded[k] += other.rounded[i];
        }
        self.noise += other.noise;
    }
}

fn add(to: &mut [f64], values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
}
