//! The forms of configuration values: what each looks like as text, and what is allowed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A type that configuration values have.
pub(crate) trait Value: Sized {
    /// What is allowed, as an error says it.
    fn allowed() -> String;
    /// Reads it; `None` when the text is nothing of that form.
    fn read(text: &str) -> Option<Self>;
    /// Writes it so that [`Value::read`] gives it back.
    fn show(&self) -> String;
}

/// A value that is one of a few words.
macro_rules! words {
    ($type:ty, $($variant:ident = $word:literal),+) => {
        impl $crate::settings::value::Value for $type {
            fn allowed() -> String {
                [$($word),+].map(|word| format!("`{word}`")).join(", ")
            }

            fn read(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn show(&self) -> String {
                match self {
                    $(Self::$variant => $word.to_owned(),)+
                }
            }
        }
    };
}
pub(crate) use words;

macro_rules! whole_number {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn allowed() -> String {
                "a whole number of at least 1, for instance `1000`".to_owned()
            }

            fn read(text: &str) -> Option<Self> {
                text.replace('_', "").parse().ok().filter(|&number| number > 0)
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+};
}
whole_number!(usize, u64, u32);

impl Value for bool {
    fn allowed() -> String {
        "`true` or `false`".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Units of time, the largest first, with their milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Value for Duration {
    fn allowed() -> String {
        "a time of at least 1 ms with its unit (ms, s, m, h, d), for instance `30s`".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let (_, millis) = UNITS.into_iter().find(|(name, _)| *name == unit.trim())?;
        let millis = number.parse::<u64>().ok()?.checked_mul(millis)?;
        (millis > 0).then(|| Self::from_millis(millis))
    }

    fn show(&self) -> String {
        let total = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        let whole = UNITS.into_iter().find(|(_, millis)| total.is_multiple_of(*millis));
        let (unit, millis) = whole.unwrap_or(("ms", 1));
        format!("{}{unit}", total / millis)
    }
}

/// The word for "no limit".
const NONE: &str = "none";

impl<V: Value> Value for Option<V> {
    fn allowed() -> String {
        format!("{}, or `{NONE}`", V::allowed())
    }

    fn read(text: &str) -> Option<Self> {
        if text == NONE { Some(None) } else { V::read(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| NONE.to_owned(), V::show)
    }
}

impl Value for SocketAddr {
    fn allowed() -> String {
        "an IP address and a port, for instance `127.0.0.1:7400` (port 0 takes a free one)".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    fn allowed() -> String {
        "a path".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for relay_ws::OriginPolicy {
    fn allowed() -> String {
        "a list of origins such as `https://app.example.com`, separated by commas; `*` for every page"
            .to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        match text {
            "" => return Some(Self::SameHost),
            "*" => return Some(Self::Any),
            _ => {}
        }
        let origins: Vec<String> = text.split(',').map(|origin| origin.trim().to_owned()).collect();
        let is_origin = |origin: &String| {
            let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            authority.is_some_and(|a| !a.is_empty() && !a.contains(['/', '*', ' ']))
        };
        origins.iter().all(is_origin).then_some(Self::AnyOf(origins))
    }

    fn show(&self) -> String {
        match self {
            Self::SameHost => String::new(),
            Self::Any => "*".to_owned(),
            Self::AnyOf(origins) => origins.join(","),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_duration(text: &str, millis: u64) {
        let read = Duration::read(text).unwrap();
        assert_eq!(read, Duration::from_millis(millis));
        assert_eq!(Duration::read(&read.show()), Some(read));
    }

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        check_duration("250ms", 250);
        check_duration("30s", 30_000);
        check_duration("90 s", 90_000);
        check_duration("5m", 300_000);
        check_duration("2h", 7_200_000);
        check_duration("7d", 604_800_000);
        for wrong in
            ["", "30", "s", "0s", "-1s", "1.5s", "30 sec", "99999999999999999999s", "999999999999999999d"]
        {
            assert_eq!(Duration::read(wrong), None, "{wrong}");
        }
        assert_eq!(Duration::from_secs(90).show(), "90s");
        assert_eq!(Duration::from_secs(120).show(), "2m");
    }

    #[test]
    fn a_number_is_at_least_one() {
        assert_eq!(usize::read("1_000"), Some(1000));
        for wrong in ["", "0", "-1", "1.5", "1k", "99999999999999999999999"] {
            assert_eq!(usize::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn origins_are_schemes_with_hosts() {
        use relay_ws::OriginPolicy;
        let read = OriginPolicy::read("https://a.example, http://localhost:5173").unwrap();
        assert_eq!(
            read,
            OriginPolicy::AnyOf(vec!["https://a.example".to_owned(), "http://localhost:5173".to_owned()])
        );
        assert_eq!(OriginPolicy::read(&read.show()), Some(read));
        assert_eq!(OriginPolicy::read(""), Some(OriginPolicy::SameHost));
        assert_eq!(OriginPolicy::read("*"), Some(OriginPolicy::Any));
        for wrong in
            ["a.example", "https://", "https://a.example/", "https://*.example", "*,https://a.example"]
        {
            assert_eq!(OriginPolicy::read(wrong), None, "{wrong}");
        }
    }
}
