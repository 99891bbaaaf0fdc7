//! The client's address where proxies stand between: headers in, an address out.
//!
//! Each proxy appends the address that it sees to `X-Forwarded-For`. Entries further left come from outside and may be
//! invented. So the list is read from the right, for as long as trusted proxies have written it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A request's extension: the request came over a connection from a trusted proxy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ThroughProxy;

/// Returns true when `address` is a trusted proxy's.
pub(super) fn is_trusted(proxies: &[IpNet], address: IpAddr) -> bool {
    proxies.iter().any(|net| net.contains(&address))
}

/// Returns the address by which a connection from `peer` is limited; `None` for a trusted proxy's, whose requests name their clients.
pub(super) fn limited_peer(proxies: &[IpNet], peer: IpAddr) -> Option<IpAddr> {
    (!is_trusted(proxies, peer)).then(|| limited_address(peer))
}

/// Returns the client's address, for a request that came over a connection from `peer`: the rightmost address that is no
/// trusted proxy's. Where a proxy has written something else than an address, returns the proxy's own.
pub(super) fn client_address(proxies: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let mut client = peer;
    // Several headers of the name are one list, in their order.
    let lists = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut hops = lists.flat_map(|list| list.as_bytes().rsplit(|byte| *byte == b','));
    while is_trusted(proxies, client) {
        match hops.next().and_then(address) {
            Some(hop) => client = hop,
            None => break,
        }
    }
    client
}

/// The bits of an IPv6 address that name the network. The rest is at the choice of its clients.
const NETWORK_BITS: u32 = 64;

/// Returns the address by which a client is limited: an IPv4 address, or the network of an IPv6 address. One machine has 2^64
/// addresses of its network.
pub(super) fn limited_address(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => {
            let network = u128::MAX << (Ipv6Addr::BITS - NETWORK_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & network))
        }
    }
}

/// Reads one entry of the list: an address, and from some proxies a port behind it.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let with_port = || hop.parse::<SocketAddr>().map(|address| address.ip());
    bare.parse().or_else(|_| with_port()).ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Checks the client's address of a connection from `peer`, at a server that trusts 10.0.0.0/8 and `::1`.
    #[track_caller]
    fn check(peer: &str, forwarded: &[&str], client: &str) {
        let proxies = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for list in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(list.as_bytes()).unwrap());
        }
        let found = client_address(&proxies, peer.parse().unwrap(), &headers);
        assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxys_is_the_clients() {
        check("10.0.0.1", &["203.0.113.7"], "203.0.113.7");
        check("10.0.0.1", &["1.2.3.4, 203.0.113.7"], "203.0.113.7");
        check("10.0.0.1", &["1.2.3.4, 203.0.113.7, 10.2.0.1"], "203.0.113.7");
        check("10.0.0.1", &["1.2.3.4", "203.0.113.7,10.2.0.1"], "203.0.113.7");
        check("::1", &["2001:db8::7"], "2001:db8::7");
    }

    #[test]
    fn a_client_that_is_no_proxy_cannot_name_another_address() {
        check("203.0.113.9", &["1.2.3.4"], "203.0.113.9");
    }

    #[test]
    fn a_proxy_that_names_no_address_stands_for_its_clients() {
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["unknown"], "10.0.0.1");
        check("10.0.0.1", &["1.2.3.4, "], "10.0.0.1");
        check("10.0.0.1", &["1.2.3.4, \u{e9}, 10.2.0.1"], "10.2.0.1");
        check("10.0.0.1", &["10.2.0.1"], "10.2.0.1");
    }

    #[test]
    fn a_client_cannot_escape_its_limits_by_another_address_of_its_network() {
        let limited = |client: &str| limited_address(client.parse().unwrap()).to_string();
        assert_eq!(limited("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(limited("2001:db8:1:2:ffff::1"), "2001:db8:1:2::");
        assert_eq!(limited("2001:db8:1:3::1"), "2001:db8:1:3::");
        assert_eq!(limited("203.0.113.7"), "203.0.113.7");
    }

    #[test]
    fn ports_and_mapped_addresses_are_the_same_client() {
        check("10.0.0.1", &["203.0.113.7:4711"], "203.0.113.7");
        check("10.0.0.1", &["[2001:db8::7]:4711"], "2001:db8::7");
        check("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7");
        check("10.0.0.1", &["::ffff:203.0.113.7"], "203.0.113.7");
    }
}
