//! Points in time as people type them.

use std::time::SystemTime;

/// Reads a date (`2024-05-01`), a date with time (`2024-05-01 12:30`), an exact
/// time (`2024-05-01T12:30:00Z`), all in UTC, or an age (`7d`, `2 weeks`, `3h`).
pub(crate) fn parse(text: &str) -> Result<SystemTime, String> {
    parse_at(text, SystemTime::now())
}

fn parse_at(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    let text = text.trim();
    for completed in [
        text.to_owned(),
        format!("{text}:00"),
        format!("{text} 00:00:00"),
    ] {
        if let Ok(time) = humantime::parse_rfc3339_weak(&completed) {
            return Ok(time);
        }
    }
    humantime::parse_duration(text)
        .ok()
        .and_then(|age| now.checked_sub(age))
        .ok_or_else(|| {
            "write a date (2024-05-01), a time (2024-05-01 12:30) or an age (7d, 2 weeks, 3h)"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn dates_times_and_ages() {
        let now = UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let seconds = |text| {
            let time = parse_at(text, now).unwrap();
            time.duration_since(UNIX_EPOCH).unwrap().as_secs()
        };
        assert_eq!(seconds("2024-05-01"), 1_714_521_600);
        assert_eq!(seconds("2024-05-01 12:30"), 1_714_566_600);
        assert_eq!(seconds("2024-05-01T12:30:05Z"), 1_714_566_605);
        assert_eq!(seconds("7d"), 2_000_000_000 - 7 * 86_400);
        assert_eq!(seconds("2 weeks"), 2_000_000_000 - 14 * 86_400);
        for wrong in [
            "",
            "yesterdayish",
            "2024-13-01",
            "99999999999999999999 years",
            "-3h",
        ] {
            assert!(parse_at(wrong, now).is_err(), "{wrong}");
        }
    }
}
