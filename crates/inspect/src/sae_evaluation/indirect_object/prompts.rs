//! Prompts with two names, and what is changed in them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::InspectError;
use crate::sae_evaluation::Attribute;

pub(super) const NAMES: [&str; 40] = [
    "Ada", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan", "June", "Kurt", "Lena",
    "Max", "Nora", "Otto", "Paul", "Rita", "Sam", "Tess", "Uwe", "Vera", "Will", "Xena", "Yann",
    "Zoe", "Anna", "Bert", "Cleo", "Dirk", "Ella", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kate",
    "Leo", "Mara", "Nick", "Olga",
];
/// Values of `io_pos`.
const ORDERS: [&str; 2] = ["first", "second"];
const OBJECTS: [&str; 6] = ["book", "ring", "kite", "lamp", "cake", "drum"];
const PLACES: [&str; 6] = ["farm", "port", "shop", "zoo", "park", "lab"];

/// Sentences of one length: `A` and `B` are the first two names, `C` the third, `P` a place, `O`
/// an object.
pub(super) const TEMPLATES: [&str; 3] = [
    "Then A and B had a long quarrel about the game and afterwards C replied to",
    "Then A and B had much fun at the P ; C gave a O to",
    "Then A and B worked at the P . C wanted to give a O to",
];

/// A prompt by its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    template: usize,
    place: usize,
    object: usize,
    /// Name of the indirect object.
    pub io: usize,
    /// Name of the subject.
    pub s: usize,
    /// Whether the subject is named first.
    pub io_second: bool,
}

/// The attributes, in the order of [`attributes`].
pub const ATTRIBUTES: [&str; 3] = ["io", "s", "io_pos"];

/// Words that the model knows.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words: Vec<&str> = Vec::new();
    let parts = TEMPLATES.iter().flat_map(|t| t.split(' '));
    let plain = parts.filter(|w| !["A", "B", "C", "P", "O"].contains(w));
    for word in NAMES.into_iter().chain(OBJECTS).chain(PLACES).chain(plain) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

impl Prompt {
    /// Draws prompts; names come from the first `names` of the list.
    ///
    /// # Errors
    /// When `names` is no number from 2 to all.
    pub fn sample(count: usize, names: usize, seed: u64) -> Result<Vec<Self>, InspectError> {
        if !(2..=NAMES.len()).contains(&names) {
            return Err(InspectError::settings(format!(
                "prompts need 2 to {} names, not {names}",
                NAMES.len()
            )));
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut one = || {
            let io = rng.random_range(0..names);
            let s = (io + rng.random_range(1..names)) % names;
            Self {
                template: rng.random_range(0..TEMPLATES.len()),
                place: rng.random_range(0..PLACES.len()),
                object: rng.random_range(0..OBJECTS.len()),
                io,
                s,
                io_second: rng.random(),
            }
        };
        Ok((0..count).map(|_| one()).collect())
    }

    /// The same prompt with one attribute changed: a name that is in neither place, or the other
    /// order.
    pub fn counterfactual(self, attribute: usize, rng: &mut StdRng) -> Self {
        let mut new = || loop {
            let name = rng.random_range(0..NAMES.len());
            if name != self.io && name != self.s {
                return name;
            }
        };
        match attribute {
            0 => Self { io: new(), ..self },
            1 => Self { s: new(), ..self },
            _ => Self {
                io_second: !self.io_second,
                ..self
            },
        }
    }

    /// The values of the attributes.
    pub fn values(self) -> [usize; 3] {
        [self.io, self.s, usize::from(self.io_second)]
    }

    /// The value of an attribute, as it is written.
    pub fn value(self, attribute: usize) -> &'static str {
        match attribute {
            0 => NAMES[self.io],
            1 => NAMES[self.s],
            _ => ORDERS[usize::from(self.io_second)],
        }
    }

    /// The words of the prompt.
    pub fn words(self) -> Vec<&'static str> {
        let (first, second) = match self.io_second {
            false => (self.io, self.s),
            true => (self.s, self.io),
        };
        let word = |w: &'static str| match w {
            "A" => NAMES[first],
            "B" => NAMES[second],
            "C" => NAMES[self.s],
            "P" => PLACES[self.place],
            "O" => OBJECTS[self.object],
            other => other,
        };
        TEMPLATES[self.template].split(' ').map(word).collect()
    }
}

/// The attributes of prompts.
pub fn attributes(prompts: &[Prompt]) -> Vec<Attribute> {
    let names = || NAMES.map(str::to_owned).to_vec();
    let values = [names(), names(), ORDERS.map(str::to_owned).to_vec()];
    let of = |at: usize| prompts.iter().map(|p| p.values()[at]).collect();
    let parts = ATTRIBUTES.iter().zip(values).enumerate();
    parts
        .map(|(at, (name, values))| Attribute {
            name: (*name).to_owned(),
            values,
            of: of(at),
        })
        .collect()
}
