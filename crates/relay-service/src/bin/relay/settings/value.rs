//! The forms of configuration values: their text, and the allowed range.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use relay_router::target::HostPattern;
use relay_service::HostPolicy;

/// A type that configuration values have.
pub(crate) trait SettingValue: Sized {
    /// The allowed values, as the end of an error message.
    fn allowed() -> String;
    /// Reads it. `None` when the text does not have the form.
    fn read(text: &str) -> Option<Self>;
    /// Writes it as text that [`SettingValue::read`] reads back.
    fn show(&self) -> String;
    /// Writes it as TOML.
    fn toml(&self) -> toml::Value {
        toml::Value::String(self.show())
    }
}

/// A value that is one of a few words.
macro_rules! words {
    ($type:ty, $($variant:ident = $word:literal),+) => {
        impl $crate::settings::value::SettingValue for $type {
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
        impl SettingValue for $type {
            fn allowed() -> String {
                "a whole number of at least 1, for instance `1000`".to_owned()
            }

            fn read(text: &str) -> Option<Self> {
                text.replace('_', "").parse().ok().filter(|&number| number > 0)
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn toml(&self) -> toml::Value {
                // TOML's numbers end at 2^63; beyond, the text means the same.
                i64::try_from(*self).map_or_else(|_| toml::Value::String(self.show()), toml::Value::Integer)
            }
        }
    )+};
}
whole_number!(usize, u64, u32);

impl SettingValue for bool {
    fn allowed() -> String {
        "`true` or `false`".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn toml(&self) -> toml::Value {
        toml::Value::Boolean(*self)
    }
}

/// Units of time, the largest first, with their milliseconds. (jiff's durations have no days.)
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl SettingValue for Duration {
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

impl<V: SettingValue> SettingValue for Option<V> {
    fn allowed() -> String {
        format!("{}, or `{NONE}`", V::allowed())
    }

    fn read(text: &str) -> Option<Self> {
        if text == NONE { Some(None) } else { V::read(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| NONE.to_owned(), V::show)
    }

    fn toml(&self) -> toml::Value {
        self.as_ref().map_or_else(|| toml::Value::String(NONE.to_owned()), V::toml)
    }
}

impl SettingValue for SocketAddr {
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

impl SettingValue for PathBuf {
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

impl SettingValue for relay_ws::OriginPolicy {
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

    fn toml(&self) -> toml::Value {
        list(&self.show())
    }
}

impl SettingValue for HostPolicy {
    fn allowed() -> String {
        "a list of names without ports such as `relay.example.com`, separated by commas; `*` for any"
            .to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        match text {
            "" => return Some(Self::Automatic),
            "*" => return Some(Self::Any),
            _ => {}
        }
        let is_name = |name: &&str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        };
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        names.iter().all(is_name).then(|| Self::AnyOf(names.into_iter().map(str::to_owned).collect()))
    }

    fn show(&self) -> String {
        match self {
            Self::Automatic => String::new(),
            Self::Any => "*".to_owned(),
            Self::AnyOf(names) => names.join(","),
        }
    }

    fn toml(&self) -> toml::Value {
        list(&self.show())
    }
}

impl SettingValue for Vec<IpNet> {
    fn allowed() -> String {
        "a list of addresses or networks such as `10.0.0.7` or `10.0.0.0/8`, separated by commas".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::new());
        }
        let net =
            |text: &str| text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into())).ok();
        text.split(',').map(|one| net(one.trim())).collect()
    }

    fn show(&self) -> String {
        self.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn toml(&self) -> toml::Value {
        list(&self.show())
    }
}

impl SettingValue for Vec<HostPattern> {
    fn allowed() -> String {
        "a list of hosts such as `sift.example` or `*.example`, separated by commas; `*` for any".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        text.split(',').map(|one| HostPattern::new(one.trim())).collect()
    }

    fn show(&self) -> String {
        self.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn toml(&self) -> toml::Value {
        list(&self.show())
    }
}

/// Schemes of services' addresses.
impl SettingValue for Vec<String> {
    fn allowed() -> String {
        "`http`, `https`, or both separated by a comma".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        let scheme = |one: &str| matches!(one, "http" | "https").then(|| one.to_owned());
        text.split(',').map(|one| scheme(one.trim())).collect()
    }

    fn show(&self) -> String {
        self.join(",")
    }

    fn toml(&self) -> toml::Value {
        list(&self.show())
    }
}

/// A share.
impl SettingValue for f64 {
    fn allowed() -> String {
        "a share between 0 and 1, for instance `0.25`".to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok().filter(|share| (0.0..=1.0).contains(share))
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn toml(&self) -> toml::Value {
        toml::Value::Float(*self)
    }
}

/// The array that a file has for a list whose items are separated by commas.
fn list(shown: &str) -> toml::Value {
    let items = shown.split(',').filter(|item| !item.is_empty());
    toml::Value::Array(items.map(|item| toml::Value::String(item.to_owned())).collect())
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

    #[test]
    fn proxies_are_addresses_or_networks() {
        let read = Vec::<IpNet>::read("10.0.0.7, 192.168.0.0/16,::1").unwrap();
        assert_eq!(read.show(), "10.0.0.7/32,192.168.0.0/16,::1/128");
        assert_eq!(Vec::<IpNet>::read(&read.show()), Some(read));
        assert_eq!(Vec::<IpNet>::read(""), Some(Vec::new()));
        for wrong in ["proxy.example", "10.0.0.0/33", "10.0.0.7,", "10.0.0.7:80"] {
            assert_eq!(Vec::<IpNet>::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn hosts_are_names_without_ports() {
        let read = HostPolicy::read("relay.example, www_1.example").unwrap();
        assert_eq!(HostPolicy::read(&read.show()), Some(read));
        assert_eq!(HostPolicy::read(""), Some(HostPolicy::Automatic));
        assert_eq!(HostPolicy::read("*"), Some(HostPolicy::Any));
        for wrong in ["relay.example:7400", "https://relay.example", "*,a.example", "a.example,"] {
            assert_eq!(HostPolicy::read(wrong), None, "{wrong}");
        }
    }
}
