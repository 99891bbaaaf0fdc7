//! The commands to try first, which `relay serve` prints once it listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

use crate::client::DEFAULT_URL;
use crate::settings::{DurabilityLevel, Settings};

/// The commands to try first, for a server that listens at `address`.
pub(crate) fn invitation(address: SocketAddr, settings: &Settings) -> String {
    let address = reachable(address);
    let (url, relay, curl) = if let Some(cert) = &settings.tls_cert {
        let url = format!("https://{}:{}", host(address.ip(), cert), address.port());
        let cert = quoted(&cert.display().to_string());
        let options = format!(" --url {url} --ca {cert}");
        (url, options, format!("--cacert {cert} "))
    } else {
        let url = format!("http://{address}");
        let options = if url == DEFAULT_URL { String::new() } else { format!(" --url {url}") };
        (url, options, String::new())
    };
    let kept = match settings.durability {
        DurabilityLevel::Memory => "in memory".to_owned(),
        DurabilityLevel::Logged | DurabilityLevel::Synced => settings.log.directory.display().to_string(),
    };
    format!(
        "\n  Relay is listening at {url}\n\n    \
         open      {url}/?document=notes   in two browser tabs, join, and type\n    \
         follow    relay tail notes{relay}\n    \
         publish   relay publish notes x-note '{{\"text\": \"hello\"}}'{relay}\n    \
         read      curl {curl}'{url}/v1/documents/notes/events?after_seq=0'; echo\n    \
         kept      {kept}\n\n  \
         Ctrl-C stops it.\n\n"
    )
}

/// `text` as one word for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |character: char| character.is_alphanumeric() || "_.:/-".contains(character);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The address at which clients on this machine reach a server that listens at `address`: a loopback address instead of
/// the wildcard address, to which nothing connects.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The host of URLs of a server at `ip`: a name that the certificate is valid for, if it can be read and has one.
fn host(ip: IpAddr, cert: &Path) -> String {
    let address = ip.to_string();
    let named = CertificateDer::from_pem_file(cert).ok().and_then(|der| {
        let cert = EndEntityCert::try_from(&der).ok()?;
        let is_valid = |host: &str| {
            ServerName::try_from(host).is_ok_and(|name| cert.verify_is_valid_for_subject_name(&name).is_ok())
        };
        let local = ip.is_loopback().then_some("localhost").into_iter().chain([&*address]);
        local.chain(cert.valid_dns_names()).find(|host| is_valid(host)).map(str::to_owned)
    });
    let host = named.unwrap_or(address);
    if host.contains(':') { format!("[{host}]") } else { host }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

    use super::*;

    /// The URL that is shown, and the options of `relay`.
    fn shown(listen: &str, names: Option<&[&str]>) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        if let Some(names) = names {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let file = directory.path().join("cert.pem");
            std::fs::write(&file, rcgen::generate_simple_self_signed(names).unwrap().cert.pem()).unwrap();
            settings.tls_cert = Some(file);
        }
        let text = invitation(listen.parse().unwrap(), &settings);
        let after = |start: &str| {
            text.lines().find_map(|line| line.trim_start().strip_prefix(start)).unwrap().to_owned()
        };
        let options = after("follow    relay tail notes");
        let options = match settings.tls_cert {
            Some(file) => options.replace(&file.display().to_string(), "FILE"),
            None => options,
        };
        (after("Relay is listening at "), options)
    }

    #[track_caller]
    fn check(listen: &str, names: Option<&[&str]>, url: &str, options: &str) {
        assert_eq!(shown(listen, names), (url.to_owned(), options.to_owned()));
    }

    #[test]
    fn the_commands_name_an_address_that_clients_can_connect_to() {
        check("127.0.0.1:7400", None, "http://127.0.0.1:7400", "");
        check("0.0.0.0:7400", None, "http://127.0.0.1:7400", "");
        check("[::]:7400", None, "http://[::1]:7400", " --url http://[::1]:7400");
        check("192.0.2.1:7400", None, "http://192.0.2.1:7400", " --url http://192.0.2.1:7400");
    }

    #[test]
    fn a_path_is_quoted_for_a_shell_where_it_needs_it() {
        assert_eq!(quoted("/etc/relay/cert-1.pem"), "/etc/relay/cert-1.pem");
        assert_eq!(quoted("my cert.pem"), "'my cert.pem'");
        assert_eq!(quoted("it's;$(x)"), r"'it'\''s;$(x)'");
        let settings = Settings { tls_cert: Some("my cert.pem".into()), ..Settings::default() };
        let text = invitation(([127, 0, 0, 1], 7400).into(), &settings);
        assert!(text.contains("--ca 'my cert.pem'") && text.contains("--cacert 'my cert.pem' "), "{text}");
    }

    #[test]
    fn the_commands_name_a_host_that_the_certificate_is_valid_for() {
        let check = |listen, names, host| {
            let url = format!("https://{host}:7400");
            check(listen, Some(names), &url, &format!(" --url {url} --ca FILE"));
        };
        check("0.0.0.0:7400", &["relay.example", "localhost"], "localhost");
        check("0.0.0.0:7400", &["*.example", "relay.example"], "relay.example");
        check("192.0.2.1:7400", &["relay.example", "192.0.2.1"], "192.0.2.1");
        check("[::]:7400", &["relay.example", "::1"], "[::1]");
        check("127.0.0.1:7400", &["*.example"], "127.0.0.1");
    }
}
