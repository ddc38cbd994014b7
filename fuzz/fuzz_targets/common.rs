//! What a file that opens must stand: everything in it is read, its template filled, and a
//! few tokens go through its layers. The tests of crates/lm use it too.

use std::sync::Arc;
use std::time::SystemTime;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use keyfold_lm::store::CacheType;
use keyfold_lm::{Decoder, Message, ModelFile, Policy, Session, SpecialTokens};

/// Uses all of a model.
pub(crate) fn use_all(file: &ModelFile) {
    for name in file.names() {
        file.tensor(name).unwrap().to_f32();
    }
    let _ = file.check_finite();
    let length = file.config().context_limit().unwrap_or(1000);
    keyfold_lm::config::rope_frequencies(file.config(), length);
    if let Ok(tokenizer) = file.tokenizer() {
        let ids = tokenizer.encode("Some text, \u{1F600} <|end|> 123.", SpecialTokens::Parse);
        tokenizer.decode(&ids.unwrap_or_default());
    }
    if let Ok(Some(template)) = file.chat_template() {
        let message = Message {
            role: "user".into(),
            content: "Hello".into(),
        };
        let _ = template.render(&[message], true, SystemTime::UNIX_EPOCH);
    }
    let _ = read_and_write(file);
}

/// Reads three tokens and writes two.
fn read_and_write(file: &ModelFile) -> Result<(), keyfold_lm::LmError> {
    let decoder = Arc::new(Decoder::load(file)?);
    let policy = Policy::dense(&decoder, CacheType::F16, 8)?;
    let mut session = Session::new(decoder, policy, Arc::new(Team::new(1)));
    session.prefill(&[0, 1, 2], &NoProgress)?;
    session.step(1)?;
    session.candidates(&[0, 1])
}
