//! Plain module paths as keys of `rank_pattern` and `alpha_pattern`, found in one step each: a config may have as many
//! of them as there are modules. What a key means is in `config`: the end of a path, at a full stop or at its start,
//! where a full stop in the key stands for any character but a new line.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Kind, Result};

/// Most ways in which full stops are placed in keys of one length. Each costs a step for each module.
const MAX_FORMS: usize = 1024;

/// Keys by their lengths, and among those of one length by where their full stops are.
#[derive(Default)]
pub struct Tails(HashMap<usize, Vec<Form>>);

/// Keys that have their full stops at the same characters.
struct Form {
    stops: HashSet<usize>,
    /// Number of each key, by its text.
    keys: HashMap<String, usize>,
}

impl Tails {
    /// Adds a key, which has only ASCII characters, by its number.
    pub fn add(&mut self, key: &str, number: usize) -> Result<()> {
        let stops: HashSet<usize> = key.match_indices('.').map(|(at, _)| at).collect();
        let forms = self.0.entry(key.len()).or_default();
        let place = match forms.iter().position(|form| form.stops == stops) {
            Some(place) => place,
            None if forms.len() >= MAX_FORMS => {
                let what = format!("more than {MAX_FORMS} kinds of paths of {} characters", key.len());
                return Err(Error::new(Kind::Limit, what));
            }
            None => {
                forms.push(Form { stops, keys: HashMap::new() });
                forms.len() - 1
            }
        };
        if let Some(form) = forms.get_mut(place) {
            form.keys.entry(key.to_string()).or_insert(number);
        }
        Ok(())
    }

    /// Numbers of all keys that mean this path, in no order.
    pub fn meaning(&self, path: &str) -> Vec<usize> {
        let mut out = Vec::new();
        if self.0.is_empty() {
            return out;
        }
        let starts = std::iter::once(0).chain(path.match_indices('.').map(|(at, _)| at + 1));
        let mut left = path.chars().count();
        let mut before = 0;
        for start in starts {
            left -= path.get(before..start).map_or(0, |passed| passed.chars().count());
            before = start;
            let Some(forms) = self.0.get(&left) else { continue };
            let tail = path.get(start..).unwrap_or_default();
            for form in forms {
                let masked: Option<String> = tail
                    .chars()
                    .enumerate()
                    .map(|(at, c)| if form.stops.contains(&at) { (c != '\n').then_some('.') } else { Some(c) })
                    .collect();
                out.extend(masked.and_then(|masked| form.keys.get(&masked)));
            }
        }
        out
    }
}
