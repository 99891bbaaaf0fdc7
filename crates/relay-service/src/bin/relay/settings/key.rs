//! The table of all keys. Parsing, `relay config` and the reference in the documentation are made from it.

use super::Settings;
use super::value::SettingValue;

/// One value that can be configured.
pub(crate) struct SettingKey {
    /// Its name in the file; sections are separated by dots.
    pub(crate) name: &'static str,
    /// Its meaning, for the documentation.
    pub(crate) meaning: &'static str,
    /// Reads text into the settings; the error says what is allowed.
    pub(crate) set: fn(&mut Settings, &str) -> Result<(), String>,
    /// The value that the settings have, as text.
    pub(crate) get: fn(&Settings) -> String,
    /// That value as TOML.
    pub(crate) toml: fn(&Settings) -> toml::Value,
}

impl SettingKey {
    /// The environment variable that sets it.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.replace('.', "__").to_ascii_uppercase())
    }
}

/// The start of the names of environment variables that set keys.
pub(crate) const PREFIX: &str = "RELAY_";

fn assign<V: SettingValue>(slot: &mut V, text: &str) -> Result<(), String> {
    *slot = V::read(text).ok_or_else(V::allowed)?;
    Ok(())
}

macro_rules! keys {
    ($($name:literal => $($field:ident).+, $meaning:literal;)*) => {
        /// All keys, in the order in which they are shown.
        pub(crate) const KEYS: &[SettingKey] = &[$(SettingKey {
            name: $name,
            meaning: $meaning,
            set: |settings, text| assign(&mut settings.$($field).+, text),
            get: |settings| settings.$($field).+.show(),
            toml: |settings| settings.$($field).+.toml(),
        }),*];
    };
}

keys! {
    "listen" => listen,
        "Where HTTP and WebSocket clients are served. There is no authentication yet: whoever reaches it may read and write.";
    "data_dir" => log.directory,
        "Where the log is kept. Made if it does not exist.";
    "durability" => durability,
        "When an event is acknowledged and shown to others: `memory` (at once; all is gone when the server stops), `logged` (written), `synced` (on disk).";
    "stop_timeout" => stop_timeout,
        "How long stopping may take, after SIGTERM or SIGINT.";
    "allowed_origins" => ws.origins,
        "Web pages of other hosts that may connect and publish. Empty: pages of the same host only.";
    "allowed_hosts" => http.allowed_hosts,
        "Names by which clients may call the server, besides IP addresses and `localhost`; `*` for any. Empty: any, but on a loopback address only what trusted proxies ask for.";
    "log_format" => log_format,
        "How the server's own log is written to standard output: `pretty` for people, `json` for machines.";
    "log_filter" => log_filter,
        "What is written there: a level, or directives such as `info,relay_ws=debug`.";
    "tls.cert" => tls_cert,
        "A PEM file with the server's certificate and those that lead to its root: clients are served over TLS. Read again on SIGHUP.";
    "tls.key" => tls_key,
        "A PEM file with the certificate's private key. Read again on SIGHUP.";
    "tls.handshake_timeout" => tls_handshake_timeout,
        "How long a TLS handshake may take.";
    "retention.max_events" => retention.max_events,
        "How many events of each document are kept.";
    "retention.max_age" => retention.max_age,
        "How long an event is kept.";
    "retention.max_bytes" => retention.max_bytes,
        "How many bytes of events of each document are kept.";
    "bus.max_payload_bytes" => bus.max_payload_bytes,
        "The largest payload that is taken.";
    "bus.max_channels" => bus.max_channels,
        "How many documents may be open at once, in use or cached.";
    "bus.max_pending_bytes" => bus.max_pending_bytes,
        "How many bytes of events may wait for the log in each document; an event counts at least 1 KiB.";
    "bus.publish_timeout" => bus.publish_timeout,
        "How long a publisher waits for room before it is told `overloaded`.";
    "bus.cache_events" => bus.cache_events,
        "How many of each open document's latest events are kept in memory (with a log).";
    "bus.cache_bytes" => bus.cache_bytes,
        "How many bytes of them.";
    "bus.warm_events" => bus.preload_events,
        "How many of the latest events are read when a document is opened: at least so far back a resent event is recognised.";
    "bus.replay_page_events" => bus.replay_page.events,
        "How many events a reader that is behind reads from the log at a time.";
    "bus.replay_page_bytes" => bus.replay_page.bytes,
        "How many bytes of them.";
    "bus.max_ephemeral_keys" => bus.max_ephemeral_keys,
        "How many different ephemeral events each document holds for slow readers.";
    "bus.idle_after" => bus.idle_after,
        "How long a document without subscribers stays in memory (with a log).";
    "bus.sweep_interval" => bus.sweep_interval,
        "How often idle documents and outdated events are looked for.";
    "log.max_event_bytes" => log.max_event_bytes,
        "The largest event that the log takes, encoded.";
    "log.queue_requests" => log.queue_requests,
        "Appends that wait for the log's writer.";
    "log.queue_bytes" => log.queue_bytes,
        "Bytes of events that wait for it.";
    "log.queue_timeout" => log.queue_timeout,
        "How long an append waits for room there before it is refused.";
    "log.concurrent_reads" => log.concurrent_reads,
        "Reads of the log that run at once; further ones wait.";
    "log.cached_heads" => log.cached_heads,
        "Documents whose latest place the log's writer keeps in memory.";
    "log.cache_bytes" => log.cache_bytes,
        "Memory for what is read from disk.";
    "log.sweep_interval" => log.sweep_interval,
        "How often idle documents are looked at for events that are too old.";
    "ws.max_connections" => ws.max_connections,
        "WebSocket connections that are open at once; more are refused with 503.";
    "ws.max_connections_per_address" => ws.max_connections_per_address,
        "Of them from one address, behind a proxy the one that it names; more are refused with 503.";
    "ws.admission_rate" => ws.admission_rate,
        "WebSocket connections that are let in per second; who comes too early waits for its turn.";
    "ws.admission_burst" => ws.admission_burst,
        "How many may come at once before the rate counts.";
    "ws.admission_wait" => ws.admission_wait,
        "The longest time that one waits for its turn; beyond that it is refused with 503.";
    "ws.handshake_timeout" => ws.handshake_timeout,
        "How long an upgrade may take from its answer until the socket is there.";
    "ws.shards" => ws.shards,
        "Tasks that own the connections; `none`: as many as the machine has cores.";
    "ws.compression" => ws.compression,
        "Whether `permessage-deflate` is agreed to when a client offers it.";
    "ws.echo" => http.echo,
        "Whether there is `/socket/echo`, which sends every message back: for trying out what is between client and server.";
    "ws.drain_rate" => ws.drain_rate,
        "How many connections are closed per second when the server stops.";
    "ws.max_topics" => ws.max_topics,
        "Documents that one connection may have joined at once.";
    "ws.max_frame_bytes" => ws.max_frame_bytes,
        "Size of one incoming message; a larger one closes the connection with 1009.";
    "ws.max_pending_pushes" => ws.max_pending_pushes,
        "Pushes of one connection that are not answered yet; with so many nothing more is read from it.";
    "ws.max_pending_push_bytes" => ws.max_pending_push_bytes,
        "Bytes of those pushes.";
    "ws.write_buffer_bytes" => ws.write_buffer_bytes,
        "Bytes that are written to a socket together, which is about what a slow connection holds.";
    "ws.stale_after" => ws.stale_after,
        "A connection from which nothing came for this long is closed with 1001.";
    "ws.write_stall_timeout" => ws.write_stall_timeout,
        "A connection that takes nothing of what waits for it for this long is closed with 1013.";
    "ws.close_timeout" => ws.close_timeout,
        "How long a client may take to answer the closing of its connection.";
    "ws.tick" => ws.tick,
        "How often those times are looked at.";
    "presence.grace" => presence.grace,
        "How long a lost connection may take to come back before anybody is told; its user's locks are kept as long.";
    "presence.stale_after" => presence.stale_after,
        "A participant from which no sign of life came for this long is gone.";
    "presence.idle_after" => presence.idle_after,
        "A session in which nobody has done anything for this long is idle.";
    "presence.max_state_bytes" => presence.max_state_bytes,
        "The largest state of one participant, as JSON.";
    "presence.flush_interval" => presence.flush_interval,
        "Changes of presence that come within this time are told together.";
    "presence.max_waiting_events" => presence.max_waiting_events,
        "Events about who comes and goes that may wait for the log in each document; with so many nobody more is let in.";
    "presence.tick" => presence.tick,
        "How often the times of presence and locks are looked at.";
    "locks.default_ttl" => locks.default_ttl,
        "How long a lease lasts that is acquired or renewed without a time of its own.";
    "locks.max_ttl" => locks.max_ttl,
        "The longest lease that can be asked for.";
    "locks.max_wait" => locks.max_wait,
        "The longest that a request may wait for its lock.";
    "locks.max_locks" => locks.max_locks,
        "Locks in one document at once.";
    "locks.max_waiters" => locks.max_waiters,
        "Requests that wait for locks in one document at once.";
    "locks.max_documents" => locks.max_documents,
        "Documents that have locks at once.";
    "locks.max_unpublished" => locks.max_unpublished,
        "Changes of one document's locks that may wait for the log; with so many nothing more is acquired there.";
    "router.rules" => router_rules,
        "A file with rules and targets, TOML or JSON; read again on SIGHUP. `none`: the rules for the four services of the examples. Rules that come over the API go before it.";
    "router.allow_networks" => router.outbound.allow_networks,
        "Networks that services may be in though they are not on the public internet, for instance `127.0.0.0/8` and `::1/128` for this machine.";
    "router.allow_hosts" => router.outbound.hosts,
        "Hosts that services may have, for instance `*.example.com`.";
    "router.allow_schemes" => router.outbound.schemes,
        "Schemes that the addresses of services may have.";
    "router.connect_timeout" => router.outbound.connect_timeout,
        "How long opening a connection to a service may take.";
    "router.max_queued" => router.max_queued,
        "Events that wait for each rule (or each of its targets, if all of them get everything) before the rule is left behind and reads the log again later.";
    "router.cache_bytes" => router.cache_bytes,
        "Bytes of waiting events that are kept in memory.";
    "router.max_dead_letters" => router.max_dead_letters,
        "Dead letters of each target that are kept.";
    "router.lease" => router.health.lease,
        "A service that was silent for longer than this is gone.";
    "router.heartbeat_every" => router.health.heartbeat_every,
        "How often services are told to send a heartbeat.";
    "router.forget_after" => router.health.forget_after,
        "How long a service that is gone is remembered, with what waits for it.";
    "router.drain_timeout" => router.health.drain_timeout,
        "How long a service that leaves may take for what waits for it.";
    "router.old_secret_for" => router.health.secret_grace,
        "How long deliveries are signed with a service's last secret too, after it got a new one.";
    "router.max_services" => router.health.max_services,
        "Services and targets that are remembered at once.";
    "router.tick" => router.health.tick,
        "How often the times of services are looked at.";
    "router.eject_after" => router.health.eject_after,
        "Failed deliveries in a row after which a service counts as unhealthy.";
    "router.eject_for" => router.health.eject_for,
        "For how long the first time; longer each further time in a row.";
    "router.degraded_at" => router.health.degraded_at,
        "Share of the last minute's deliveries that must have failed for a service to count as degraded.";
    "router.degraded_of" => router.health.degraded_of,
        "Of at least how many deliveries.";
    "router.flap_half_life" => router.health.flap_half_life,
        "How soon it is half forgiven that a service went down; with three falls it is left alone until it has been quiet.";
    "router.decisions.queue" => router.decisions.queue,
        "Decisions that may wait to be kept; more are dropped and counted.";
    "router.decisions.memory_records" => router.decisions.memory_records,
        "Decisions that are kept in memory.";
    "router.decisions.sample" => router.decisions.sample,
        "Share of events whose decisions are kept. What went wrong is always kept.";
    "router.decisions.disk" => router.decisions.disk,
        "Whether decisions are written to files too, in `<data_dir>/router/decisions`.";
    "router.decisions.max_file_bytes" => router.decisions.max_file_bytes,
        "Size of one of those files.";
    "router.decisions.max_files" => router.decisions.max_files,
        "How many of them are kept.";
    "http.max_connections" => http.max_connections,
        "HTTP connections that are open at once, event streams among them; more are refused with 503. WebSockets are counted by `ws.max_connections`.";
    "http.max_connections_per_address" => http.max_connections_per_address,
        "Of them from one address, trusted proxies excepted; more are refused with 503.";
    "http.trusted_proxies" => http.trusted_proxies,
        "Addresses and networks of proxies that are believed where a request comes from (`X-Forwarded-For`).";
    "http.max_body_bytes" => http.max_body_bytes,
        "Size of a request's body.";
    "http.max_batch_events" => http.max_batch_events,
        "Events of one batch.";
    "http.max_page_events" => http.max_page_events,
        "Events of one page of history.";
    "http.header_timeout" => http.header_timeout,
        "How long a connection may take to send a request's head, and how long it may idle between two requests.";
    "http.body_timeout" => http.body_timeout,
        "How long a request's body may take.";
    "http.write_timeout" => http.write_timeout,
        "A client that takes nothing of its answer for this long is cut off; an event stream's client comes back and goes on where it was.";
    "http.keep_alive" => http.keep_alive,
        "A stream of events on which nothing was sent for this long gets a comment.";
}

/// The key of the given name.
pub(crate) fn find(name: &str) -> Option<&'static SettingKey> {
    KEYS.iter().find(|key| key.name == name)
}

/// The key whose name is most similar to `name`, if there is a similar one.
pub(crate) fn nearest(name: &str) -> Option<&'static SettingKey> {
    let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
    KEYS.iter()
        .map(|key| (distance(name, key.name).min(distance(name, last(key.name)) + 1), key))
        .filter(|(distance, key)| *distance <= 2.max(key.name.len() / 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

/// The Levenshtein distance of two texts: the number of characters to add, remove or change.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_finds_the_one_that_was_meant() {
        assert_eq!(nearest("durabilty").unwrap().name, "durability");
        assert_eq!(nearest("ws.max_frame_byte").unwrap().name, "ws.max_frame_bytes");
        assert_eq!(nearest("max_frame_bytes").unwrap().name, "ws.max_frame_bytes");
        assert!(nearest("colour").is_none());
    }

    #[test]
    fn each_value_is_read_back_as_it_is_shown() {
        let defaults = Settings::default();
        for key in KEYS {
            let shown = (key.get)(&defaults);
            let mut settings = Settings::default();
            (key.set)(&mut settings, &shown).unwrap();
            assert_eq!((key.get)(&settings), shown, "{}", key.name);
        }
    }

    #[test]
    fn each_key_changes_a_value_of_its_own() {
        for key in KEYS {
            let mut settings = Settings::default();
            let other = [
                "7",
                "7s",
                "true",
                "json",
                "memory",
                "http://x",
                "127.0.0.1:7",
                "10.0.0.0/8",
                "0.25",
                "https",
                "changed",
            ]
            .into_iter()
            .find(|text| (key.set)(&mut settings, text).is_ok());
            assert!(other.is_some(), "{} takes none of the samples", key.name);
            let changed: Vec<_> =
                KEYS.iter().filter(|k| (k.get)(&settings) != (k.get)(&Settings::default())).collect();
            assert_eq!(changed.iter().map(|k| k.name).collect::<Vec<_>>(), [key.name]);
        }
    }
}
