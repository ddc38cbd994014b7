//! Settings of a training: the paper's values, a recipe on top, single values on top.
//!
//! A recipe is a TOML file whose fields are those of the method's configuration.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;

/// `defaults`, changed by the recipe in `file` and then by `set` (`key=value`; a field
/// of a table is `table.key=value`).
///
/// # Errors
/// When a field is unknown or a value has the wrong type; the message lists the fields.
pub fn settings<C: Serialize + DeserializeOwned>(
    defaults: &C,
    file: Option<&Path>,
    set: &[String],
) -> Result<C, TrainError> {
    let mut values = toml::Value::try_from(defaults)
        .map_err(|e| TrainError::Config(format!("the defaults cannot be written: {e}")))?;
    if let Some(file) = file {
        let text = std::fs::read_to_string(file)
            .map_err(|e| TrainError::Config(format!("cannot read {}: {e}", file.display())))?;
        let recipe: toml::Table = text
            .parse()
            .map_err(|e| TrainError::Config(format!("{} is not TOML: {e}", file.display())))?;
        overlay(&mut values, recipe, "")
            .map_err(|what| TrainError::Config(format!("{}: {what}", file.display())))?;
    }
    for pair in set {
        let (table, _) = assignment(pair).map_err(TrainError::Config)?;
        overlay(&mut values, table, "")
            .map_err(|what| TrainError::Config(format!("--set {pair}: {what}")))?;
    }
    values
        .try_into()
        .map_err(|e: toml::de::Error| TrainError::Config(format!("the settings: {}", e.message())))
}

/// `a.b=1` as the table `{a: {b: 1}}`.
fn assignment(pair: &str) -> Result<(toml::Table, String), String> {
    let wrong = || format!("--set {pair}: write KEY=VALUE, as in --set batch_size=8");
    let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '-';
    if key.is_empty() || !key.chars().all(plain) {
        return Err(wrong());
    }
    // What is no number, list or quoted string is a word.
    let value: toml::Value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut keys = key.rsplit('.');
    let last = keys.next().unwrap_or(key).to_owned();
    let mut table = toml::Table::from_iter([(last, value)]);
    for key in keys {
        table = toml::Table::from_iter([(key.to_owned(), toml::Value::Table(table))]);
    }
    Ok((table, key.to_owned()))
}

/// Writes `changes` over `values`; a field that is not there is refused.
fn overlay(values: &mut toml::Value, changes: toml::Table, path: &str) -> Result<(), String> {
    let Some(table) = values.as_table_mut() else {
        return Err(format!("'{path}' is not a table"));
    };
    for (key, change) in changes {
        let name = match path {
            "" => key.clone(),
            _ => format!("{path}.{key}"),
        };
        let known: Vec<&str> = table.keys().map(String::as_str).collect();
        let known = known.join(", ");
        let Some(old) = table.get_mut(&key) else {
            return Err(format!("no field '{name}'; there are {known}"));
        };
        match (old, change) {
            (old @ toml::Value::Table(_), toml::Value::Table(change)) => {
                overlay(old, change, &name)?;
            }
            // A whole number is written for 2.0 as well.
            (old @ toml::Value::Float(_), toml::Value::Integer(n)) => {
                *old = toml::Value::Float(n as f64);
            }
            (old, change) => {
                if std::mem::discriminant(old) != std::mem::discriminant(&change) {
                    let (is, was) = (change.type_str(), old.type_str());
                    return Err(format!("'{name}' is {was}, not {is}"));
                }
                *old = change;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        rate: f64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Outer {
        size: usize,
        name: String,
        optimiser: Inner,
    }

    fn defaults() -> Outer {
        Outer {
            size: 3,
            name: "mean".into(),
            optimiser: Inner { rate: 0.5 },
        }
    }

    #[test]
    fn single_values_stand_above_the_recipe_and_the_recipe_above_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("small.toml");
        std::fs::write(&file, "size = 4\n[optimiser]\nrate = 2\n").unwrap();
        let set = ["size=5".to_owned(), "name=cls".to_owned()];
        let made: Outer = settings(&defaults(), Some(&file), &set).unwrap();
        assert_eq!(made.size, 5);
        assert_eq!(made.name, "cls");
        assert_eq!(made.optimiser.rate, 2.0);
        let set = ["optimiser.rate=1e-3".to_owned()];
        let made: Outer = settings(&defaults(), None, &set).unwrap();
        assert_eq!(made.optimiser.rate, 1e-3);
    }

    #[test]
    fn wrong_fields_and_types_are_told() {
        let told = |pair: &str| {
            settings(&defaults(), None, &[pair.to_owned()])
                .unwrap_err()
                .to_string()
        };
        assert!(told("siz=4").contains("there are name, optimiser, size"));
        assert!(told("optimiser.speed=4").contains("no field 'optimiser.speed'"));
        assert!(told("size=large").contains("'size' is integer, not string"));
        assert!(told("size=-1").contains("settings"), "{}", told("size=-1"));
        assert!(told("size").contains("KEY=VALUE"));
        let missing = settings(&defaults(), Some(Path::new("/nowhere/x.toml")), &[]);
        assert!(missing.unwrap_err().to_string().contains("/nowhere/x.toml"));
    }
}
