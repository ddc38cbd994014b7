//! Language models that are small and random.

use std::path::Path;

use serde_json::Value;

use super::Notes;

/// The path of a fixture of a language model.
pub(crate) fn model(name: &str) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/fixtures");
    fixtures.join(name).to_string_lossy().into_owned()
}

pub(crate) const PROMPT: &str = "the boat on the river and the boat by the wall";

/// What `keyfold lm generate` tells of 24 tokens after [`PROMPT`].
#[track_caller]
pub(crate) fn generate(notes: &Notes, more: &[&str]) -> Value {
    let llama = model("llama");
    let mut args = vec![
        "lm", "generate", PROMPT, "--model", &llama, "-n", "24", "--json",
    ];
    args.extend(more);
    notes.run(&args).json()
}
