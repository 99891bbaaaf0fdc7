//! The names by which clients may call the server: the guard against DNS rebinding.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;
use http::header::HOST;
use http::uri::Authority;

use super::problem::Problem;
use crate::config::HostPolicy;
use crate::server::ThroughProxy;

/// The [`HostPolicy`] of a server that listens at a known address.
#[derive(Debug, Clone)]
pub(crate) enum Hosts {
    Any,
    /// These names besides addresses and `localhost`.
    AnyOf(Vec<String>),
    /// Requests that did not come through a proxy must use an address or `localhost`.
    Local,
}

impl Hosts {
    pub(crate) fn new(policy: &HostPolicy, listen: SocketAddr) -> Self {
        match policy {
            HostPolicy::AnyOf(names) => Self::AnyOf(names.clone()),
            HostPolicy::Automatic if listen.ip().to_canonical().is_loopback() => Self::Local,
            HostPolicy::Automatic | HostPolicy::Any => Self::Any,
        }
    }

    /// Returns true when clients may call the server `authority`, which may have a port.
    fn allow(&self, authority: &str, through_proxy: bool) -> bool {
        let listed = match self {
            Self::Any => return true,
            Self::Local if through_proxy => return true,
            Self::Local => &[][..],
            Self::AnyOf(names) => names,
        };
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        address.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || listed.iter().any(|name| name.eq_ignore_ascii_case(&host))
    }
}

pub(super) async fn refuse_other_names(
    State(hosts): State<Hosts>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let in_header = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    // The authority of a URI goes before the header: RFC 9112, 3.2.2.
    let Some(name) = request.uri().authority().map(Authority::as_str).or(in_header) else {
        return Ok(next.run(request).await);
    };
    if hosts.allow(name, request.extensions().get::<ThroughProxy>().is_some()) {
        return Ok(next.run(request).await);
    }
    Err(Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        "unknown_host",
        format!(
            "this server is not called `{}`; the operator allows names with `allowed_hosts`, and a proxy's \
             with `http.trusted_proxies`",
            name.chars().take(64).collect::<String>()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Hosts {
        Hosts::new(&HostPolicy::Automatic, "127.0.0.1:7400".parse().unwrap())
    }

    #[test]
    fn addresses_and_localhost_are_names_of_every_server() {
        let listed = Hosts::AnyOf(vec!["relay.example".to_owned()]);
        for hosts in [local(), listed, Hosts::Any] {
            for name in [
                "127.0.0.1",
                "127.0.0.1:7400",
                "[::1]:7400",
                "192.0.2.7",
                "localhost:1",
                "LocalHost",
                "a.localhost.",
            ] {
                assert!(hosts.allow(name, false), "{hosts:?} {name}");
            }
        }
    }

    #[test]
    fn on_a_loopback_address_other_names_are_a_proxys_alone() {
        for name in [
            "evil.example",
            "evil.example:7400",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "[",
            "@",
        ] {
            assert!(!local().allow(name, false), "{name}");
        }
        assert!(local().allow("relay.example", true));
    }

    #[test]
    fn listed_names_are_the_only_ones_wherever_the_server_listens() {
        let policy = HostPolicy::AnyOf(vec!["Relay.example".to_owned()]);
        for listen in ["127.0.0.1:7400", "0.0.0.0:7400"] {
            let hosts = Hosts::new(&policy, listen.parse().unwrap());
            assert!(hosts.allow("relay.Example:443", false));
            assert!(!hosts.allow("evil.example", true));
        }
        let open = Hosts::new(&HostPolicy::Automatic, "0.0.0.0:7400".parse().unwrap());
        assert!(open.allow("whatever.example", false));
    }
}
