//! The times that follow those of a table.

/// The `count` times after those given, where these are dates (`2016-07-01`, with an hour, minutes
/// and seconds behind them or not) at an equal distance; nothing where they are not.
pub fn times_after(times: &[String], count: usize) -> Option<Vec<String>> {
    let [.., before, last] = times else {
        return None;
    };
    let (before, at) = (seconds(before)?, seconds(last)?);
    let step = at - before;
    let regular =
        times.windows(2).rev().take(64).all(
            |t| matches!((seconds(&t[0]), seconds(&t[1])), (Some(a), Some(b)) if b - a == step),
        );
    if step <= 0 || !regular {
        return None;
    }
    // A date alone cannot say what lies within the day.
    let whole_days = last.len() == 10;
    if whole_days && step % DAY != 0 {
        return None;
    }
    let next = |n: usize| written(at + step * n as i64, last);
    Some((1..=count).map(next).collect())
}

const DAY: i64 = 86_400;

/// Seconds since the year 0 of `YYYY-MM-DD`, `YYYY-MM-DD HH:MM` or `YYYY-MM-DD HH:MM:SS`; there may
/// be a `T` for the blank.
fn seconds(text: &str) -> Option<i64> {
    if !text.is_ascii() || ![10, 16, 19].contains(&text.len()) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let part = text.get(range)?;
        part.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| part.parse().ok())?
    };
    let mark = |at: usize, marks: &[u8]| marks.contains(&text.as_bytes()[at]);
    if !mark(4, b"-") || !mark(7, b"-") {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let mut all = DAY * days(year, month, day);
    if text.len() > 10 {
        if !mark(10, b" T") || !mark(13, b":") {
            return None;
        }
        all += 3600 * number(11..13)? + 60 * number(14..16)?;
    }
    if text.len() == 19 {
        if !mark(16, b":") {
            return None;
        }
        all += number(17..19)?;
    }
    Some(all)
}

/// Days of the Gregorian calendar since 1 March of the year 0 (Hinnant: chrono-Compatible Low-Level
/// Date Algorithms).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year
}

/// The opposite of [`days`].
fn date(days: i64) -> [i64; 3] {
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    [year, month, day]
}

/// A time as `like` is written.
fn written(seconds: i64, like: &str) -> String {
    let [year, month, day] = date(seconds.div_euclid(DAY));
    let rest = seconds.rem_euclid(DAY);
    let mut text = format!("{year:04}-{month:02}-{day:02}");
    if like.len() > 10 {
        let blank = if like.as_bytes()[10] == b'T' {
            'T'
        } else {
            ' '
        };
        text += &format!("{blank}{:02}:{:02}", rest / 3600, rest / 60 % 60);
    }
    if like.len() == 19 {
        text += &format!(":{:02}", rest % 60);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(times: &[&str], count: usize) -> Option<Vec<String>> {
        let times: Vec<String> = times.iter().map(|t| (*t).to_owned()).collect();
        times_after(&times, count)
    }

    #[test]
    fn hours_and_days_go_on() {
        assert_eq!(
            after(&["2016-02-28 22:00:00", "2016-02-28 23:00:00"], 26).unwrap()[25],
            "2016-03-01 01:00:00",
            "2016 has a 29 February"
        );
        assert_eq!(
            after(&["2019-12-24", "2019-12-31"], 1).unwrap(),
            ["2020-01-07"]
        );
        assert_eq!(
            after(&["2021-02-28T23:30", "2021-02-28T23:45"], 1).unwrap(),
            ["2021-03-01T00:00"]
        );
    }

    #[test]
    fn what_is_no_regular_time_has_no_next() {
        assert_eq!(after(&["2020-01-01"], 1), None);
        assert_eq!(after(&["1", "2"], 1), None);
        assert_eq!(after(&["2020-01-01", "2020-01-02", "2020-01-04"], 1), None);
        assert_eq!(after(&["2020-01-02", "2020-01-01"], 1), None);
        assert_eq!(after(&["2020-13-01", "2020-13-02"], 1), None);
        assert_eq!(after(&["2020-0é-1", "2020-0é-2"], 1), None);
    }

    #[test]
    fn days_and_dates_agree() {
        for day in (600_000..800_000).step_by(17) {
            let [year, month, date] = date(day);
            assert_eq!(days(year, month, date), day);
        }
    }
}
