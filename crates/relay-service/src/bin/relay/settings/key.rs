//! The table of all keys. Parsing, `relay config` and the reference in the documentation are made from it.

use strsim::levenshtein;

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
    /// Returns the value that the settings have, as text.
    pub(crate) get: fn(&Settings) -> String,
    /// Returns that value as TOML.
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
        "The address at which HTTP and WebSocket clients are served. There is no authentication yet: every client that reaches it may read and write.";
    "data_dir" => log.directory,
        "The directory of the log. It is created if it does not exist.";
    "durability" => durability,
        "The durability of an event before it is acknowledged and shown: `memory` (gone when the server stops), `logged` (written), `synced` (on disk).";
    "stop_timeout" => stop_timeout,
        "The longest time that stopping takes after SIGTERM or SIGINT.";
    "allowed_origins" => ws.origins,
        "The origins of web pages on other hosts that may connect and publish; `*` allows every page. Empty: pages of the same host only.";
    "allowed_hosts" => http.allowed_hosts,
        "The names by which clients may call the server, besides IP addresses and `localhost`; `*` allows any name. Empty: any name, but on a loopback address only in requests of trusted proxies.";
    "log_format" => log_format,
        "The format of the server's own log on standard output: `pretty` for people, `json` for machines.";
    "log_filter" => log_filter,
        "The lines that this log has: a level, or directives such as `info,relay_ws=debug`.";
    "tls.cert" => tls_cert,
        "The PEM file with the server's certificate, followed by those that lead to its root. With it clients are served over TLS. SIGHUP reads it again.";
    "tls.key" => tls_key,
        "The PEM file with the certificate's private key. SIGHUP reads it again.";
    "tls.handshake_timeout" => tls_handshake_timeout,
        "The longest time that a TLS handshake takes.";
    "retention.max_events" => retention.max_events,
        "The most sequenced events that are kept of each document.";
    "retention.max_age" => retention.max_age,
        "The age beyond which sequenced events are dropped.";
    "retention.max_bytes" => retention.max_bytes,
        "The most bytes of sequenced events that are kept of each document.";
    "retention.logged_max_bytes" => log.logged_retention.max_bytes,
        "The most bytes of logged events (sessions, users, services) that are kept, over all documents.";
    "retention.logged_max_age" => log.logged_retention.max_age,
        "The age beyond which logged events are dropped.";
    "memory.max_bytes" => memory.max_bytes,
        "The most bytes that are held for all clients and services together. Beyond it, requests are refused and caches are dropped.";
    "memory.max_cache_bytes" => memory.max_cache_bytes,
        "The part of it that events in memory and their encoded copies take. The least recently used documents give way.";
    "memory.max_address_bytes" => memory.max_address_bytes,
        "The most bytes that are held for the connections of one address.";
    "memory.max_connection_bytes" => memory.max_connection_bytes,
        "The most bytes that are held for one connection.";
    "bus.max_payload_bytes" => bus.max_payload_bytes,
        "The largest payload that is accepted.";
    "bus.max_channels" => bus.max_channels,
        "The most documents with events that are in memory at once, in use or cached. A document without events takes no place.";
    "bus.max_pending_bytes" => bus.max_pending_bytes,
        "The most bytes of events that wait for the log in each document. An event counts as at least 1 KiB.";
    "bus.publish_timeout" => bus.publish_timeout,
        "The longest time that a publisher waits for space in that queue, and for most readers of the document. Then it is refused with `overloaded`.";
    "bus.min_events_per_second" => bus.min_events_per_second,
        "The events a second that each document takes although most of its readers are behind. An event counts as one more for each KiB.";
    "bus.cache_events" => bus.cache_events,
        "The most events of each open document that memory holds beside a log.";
    "bus.cache_bytes" => bus.cache_bytes,
        "The most bytes of these events, their encoded copies included.";
    "bus.warm_events" => bus.preload_events,
        "The number of latest events that are read when a document is opened.";
    "bus.idempotency_events" => bus.idempotency_events,
        "The number of latest events of each document whose ids are recognised when a draft is sent again, also after a restart. Events that retention has dropped are not recognised.";
    "bus.idempotency_bytes" => bus.idempotency_bytes,
        "The most bytes of these events that are read from the log for their ids, the latest first, once after a document is opened.";
    "bus.replay_page_events" => bus.replay_page.events,
        "The most events that a reader that is behind takes from the log at a time.";
    "bus.replay_page_bytes" => bus.replay_page.bytes,
        "The most bytes of these events.";
    "bus.max_ephemeral_keys" => bus.max_ephemeral_keys,
        "The most ephemeral events, by kind, actor and key, that each document holds for slow readers.";
    "bus.max_ephemeral_bytes" => bus.max_ephemeral_bytes,
        "The most bytes of these events, their encoded copies included.";
    "bus.idle_after" => bus.idle_after,
        "The time that an unused document stays in memory beside a log.";
    "bus.sweep_interval" => bus.sweep_interval,
        "The interval between sweeps for unused documents and outdated events.";
    "log.max_event_bytes" => log.max_event_bytes,
        "The largest encoded event that the log accepts.";
    "log.queue_requests" => log.queue_requests,
        "The most appends that wait for the log's writer.";
    "log.queue_bytes" => log.queue_bytes,
        "The most bytes of events that wait for the log's writer.";
    "log.queue_timeout" => log.queue_timeout,
        "The longest time that an append waits for space in that queue before it is refused.";
    "log.concurrent_reads" => log.concurrent_reads,
        "The most reads of the log that run at once. Further reads wait.";
    "log.cached_heads" => log.cached_heads,
        "The most documents whose latest position the log's writer keeps in memory.";
    "log.cache_bytes" => log.cache_bytes,
        "The memory for data that was read from disk.";
    "log.max_held_bytes" => log.max_held_bytes,
        "The most bytes of documents that are kept beyond `retention` because events of theirs are not yet delivered to services. With more such events are dropped.";
    "log.sweep_interval" => log.sweep_interval,
        "The interval between scans of all documents for events that are too old.";
    "ws.max_connections" => ws.max_connections,
        "The most WebSocket connections that are open at once. More are refused with 503.";
    "ws.max_connections_per_address" => ws.max_connections_per_address,
        "The most WebSocket connections from one address; behind a proxy, the address that the proxy names. More are refused with 503. `none`: three times as many as are free, so three quarters of `ws.max_connections` for one address alone.";
    "ws.admission_rate" => ws.admission_rate,
        "The WebSocket connections that are admitted per second. Further ones wait for their turn.";
    "ws.admission_burst" => ws.admission_burst,
        "The WebSocket connections that are admitted at once before the rate applies.";
    "ws.admission_wait" => ws.admission_wait,
        "The longest time that a connection waits for its turn. With a longer wait ahead it is refused with 503. The last tenth of the wait is for clients whose address has no connection.";
    "ws.handshake_timeout" => ws.handshake_timeout,
        "The longest time from the answer to an upgrade until the socket is there.";
    "ws.shards" => ws.shards,
        "The number of tasks that own the connections. `none`: one for each core.";
    "ws.compression" => ws.compression,
        "True to agree to `permessage-deflate` when a client offers it.";
    "ws.echo" => http.echo,
        "True to serve `/socket/echo`, which sends every message back, to test the network between client and server.";
    "ws.drain_rate" => ws.drain_rate,
        "The connections that are closed per second when the server stops.";
    "ws.max_topics" => ws.max_topics,
        "The most documents that one connection has joined at once.";
    "ws.max_documents_per_address" => ws.max_documents_per_address,
        "The most documents that the clients of one address have joined at once, event streams included. More are refused with `too_many_documents`. `none`: a quarter of `bus.max_channels`.";
    "ws.max_frame_bytes" => ws.max_frame_bytes,
        "The largest incoming message. A larger one is refused with `too_large`. One that is sixteen times as large, or names no `ref`, closes the connection with 1009.";
    "ws.max_pending_pushes" => ws.max_pending_pushes,
        "The most unanswered pushes of one connection. With so many nothing more is read from it.";
    "ws.max_pending_push_bytes" => ws.max_pending_push_bytes,
        "The most bytes of these pushes, with metadata and arguments.";
    "ws.write_buffer_bytes" => ws.write_buffer_bytes,
        "The bytes that are written to a socket at once. A slow connection holds about as much.";
    "ws.stale_after" => ws.stale_after,
        "The silence after which a connection is closed with 1001.";
    "ws.message_timeout" => ws.message_timeout,
        "The longest time that a message takes from its first byte to its last. A slower one closes the connection with 1008.";
    "ws.write_stall_timeout" => ws.write_stall_timeout,
        "The time after which a connection that accepts none of the waiting bytes is closed with 1013.";
    "ws.close_timeout" => ws.close_timeout,
        "The longest time that a client takes to answer the closing of its connection.";
    "ws.tick" => ws.tick,
        "The interval at which these times are checked.";
    "presence.grace" => presence.grace,
        "The time within which a lost connection can come back unnoticed. Its user's locks are kept as long.";
    "presence.stale_after" => presence.stale_after,
        "The silence after which a participant that joined over HTTP is removed.";
    "presence.idle_after" => presence.idle_after,
        "The time without activity after which a session is idle.";
    "presence.max_state_bytes" => presence.max_state_bytes,
        "The largest state of one participant, as JSON.";
    "presence.max_document_bytes" => presence.max_document_bytes,
        "The most bytes of one document's presence, with departed participants and encoded rosters. States take at most a quarter of it; a further one is refused with `overloaded`.";
    "presence.max_document_bytes_per_address" => presence.max_document_bytes_per_address,
        "The most bytes of one document's states that clients of one address set. A further one is refused with `overloaded`. `none`: half of what the document's states take at most.";
    "presence.flush_interval" => presence.flush_interval,
        "The interval between messages about presence. Changes within it are sent together. Beyond 500 connections to a document it is longer.";
    "presence.max_waiting_events" => presence.max_waiting_events,
        "The most events about sessions and users of one document that wait for the log. With so many, further joins are refused.";
    "presence.tick" => presence.tick,
        "The interval at which the times of presence and locks are checked.";
    "presence.checkpoint_interval" => presence.checkpoint_interval,
        "The interval at which open sessions and locks are noted beside the log. After a crash they are ended by events.";
    "locks.default_ttl" => locks.default_ttl,
        "The length of a lease for which the request names none.";
    "locks.max_ttl" => locks.max_ttl,
        "The longest lease that a request can ask for.";
    "locks.max_wait" => locks.max_wait,
        "The longest time that a request can wait for its lock.";
    "locks.max_locks" => locks.max_locks,
        "The most locks in one document at once.";
    "locks.max_locks_per_address" => locks.max_locks_per_address,
        "The most locks in one document, and requests for them, that clients of one address have at once. More are refused with `too_many_locks`. `none`: half of `locks.max_locks` or of `locks.max_waiters`, whichever is less.";
    "locks.max_waiters" => locks.max_waiters,
        "The most requests that wait for locks in one document at once.";
    "locks.max_documents" => locks.max_documents,
        "The most documents that have locks at once.";
    "locks.max_documents_per_address" => locks.max_documents_per_address,
        "The most documents in which clients of one address have locks at once. More are refused with `too_many_documents`. `none`: a quarter of `locks.max_documents`.";
    "locks.max_unpublished" => locks.max_unpublished,
        "The most changes of one document's locks that wait for the log. With so many, no further lock is acquired there.";
    "router.rules" => router_rules,
        "The file with rules and targets, TOML or JSON. SIGHUP reads it again. `none`: the rules for the four example services. Rules that are put over the API replace the file's.";
    "router.allow_networks" => router.outbound.allow_networks,
        "The networks outside the public internet that services may be in, for instance `127.0.0.0/8` and `::1/128` for this machine.";
    "router.allow_hosts" => router.outbound.hosts,
        "The hosts that services may have, for instance `*.example.com`.";
    "router.allow_schemes" => router.outbound.schemes,
        "The schemes that the addresses of services may have.";
    "router.connect_timeout" => router.outbound.connect_timeout,
        "The longest time that opening a connection to a service takes.";
    "router.max_queued" => router.max_queued,
        "The most events that wait in memory for a rule, or for one of its targets where each target gets every event. Further ones wait on disk. Also the most retried dead letters that wait for a target; further ones stay dead letters.";
    "router.max_waiting" => router.max_waiting,
        "The most events that wait so in memory and on disk. Further ones are lost.";
    "router.queue_bytes" => router.queue_bytes,
        "The most bytes that the waiting events of all rules and targets take in memory beside their content. Further ones wait on disk, but 16 of each rule or target.";
    "router.cache_bytes" => router.cache_bytes,
        "The most bytes of waiting events that are cached in memory.";
    "router.max_dead_letters" => router.max_dead_letters,
        "The most dead letters that are kept for each target.";
    "router.lease" => router.health.lease,
        "The time without a heartbeat after which a service is gone.";
    "router.heartbeat_every" => router.health.heartbeat_every,
        "The interval at which services are told to send heartbeats.";
    "router.forget_after" => router.health.forget_after,
        "The time for which a service that is gone is remembered, with its waiting events.";
    "router.drain_timeout" => router.health.drain_timeout,
        "The longest time that a draining service has for its waiting events.";
    "router.old_secret_for" => router.health.secret_grace,
        "The time for which deliveries are also signed with the previous secret after a rotation.";
    "router.max_services" => router.health.max_services,
        "The most services and targets that are remembered at once.";
    "router.max_services_per_address" => router.health.max_services_per_address,
        "The most services that are remembered at once of those that registered from one address. The one of them that is gone for longest is forgotten for another; without one, more are refused with `too_many_services`. `none`: a quarter of `router.max_services`.";
    "router.tick" => router.health.tick,
        "The interval at which leases and ejections are checked.";
    "router.eject_after" => router.health.eject_after,
        "The failed deliveries in a row after which a service counts as unhealthy.";
    "router.eject_for" => router.health.eject_for,
        "The length of a first ejection. Each further one in a row lasts as long again, up to ten times.";
    "router.degraded_at" => router.health.degraded_at,
        "The share of failed deliveries in the last minute at which a service counts as degraded.";
    "router.degraded_of" => router.health.degraded_of,
        "The fewest deliveries in the last minute for `router.degraded_at` to apply.";
    "router.flap_half_life" => router.health.flap_half_life,
        "The half-life of the penalty for flapping. A fall from healthy to unhealthy adds 1; from 3 on the service is kept down until the penalty is below 1.";
    "router.decisions.queue" => router.decisions.queue,
        "The most decisions that wait to be kept. Further ones are dropped and counted.";
    "router.decisions.queue_bytes" => router.decisions.queue_bytes,
        "The most bytes of these decisions and of their events.";
    "router.decisions.memory_records" => router.decisions.memory_records,
        "The most decisions that are kept in memory.";
    "router.decisions.memory_bytes" => router.decisions.memory_bytes,
        "The most bytes of these decisions.";
    "router.decisions.sample" => router.decisions.sample,
        "The share of events whose decisions are recorded. Failures are always recorded.";
    "router.decisions.disk" => router.decisions.disk,
        "True to write decisions to files in `<data_dir>/router/decisions` as well.";
    "router.decisions.max_file_bytes" => router.decisions.max_file_bytes,
        "The bytes of a file after which the next one begins.";
    "router.decisions.max_files" => router.decisions.max_files,
        "The most files of decisions. The oldest are deleted first.";
    "http.max_connections" => http.max_connections,
        "The most HTTP connections that are open at once, event streams included. More are refused with 503. WebSockets count under `ws.max_connections`.";
    "http.max_connections_per_address" => http.max_connections_per_address,
        "The most HTTP connections from one address, trusted proxies excepted. More are refused with 503. `none`: three times as many as are free, so three quarters of `http.max_connections` for one address alone.";
    "http.trusted_proxies" => http.trusted_proxies,
        "The addresses and networks of proxies whose `X-Forwarded-For` names the client's address.";
    "http.max_body_bytes" => http.max_body_bytes,
        "The largest body of a request.";
    "http.max_batch_events" => http.max_batch_events,
        "The most events of one batch.";
    "http.max_page_events" => http.max_page_events,
        "The most events of one page of history.";
    "http.header_timeout" => http.header_timeout,
        "The longest time that a connection takes to send a request's head, and that it idles between two requests.";
    "http.body_timeout" => http.body_timeout,
        "The longest time that a request's body takes.";
    "http.write_timeout" => http.write_timeout,
        "The time after which a client that reads nothing of its answer is disconnected. The client of an event stream can continue at its position.";
    "http.keep_alive" => http.keep_alive,
        "The time without an event after which a stream of events gets a comment.";
}

/// The key of the given name.
pub(crate) fn find(name: &str) -> Option<&'static SettingKey> {
    KEYS.iter().find(|key| key.name == name)
}

/// Words in the settings of other programs, each with the key that has its meaning here.
const SYNONYMS: &[(&str, &str)] = &[
    ("addr", "listen"),
    ("address", "listen"),
    ("bind", "listen"),
    ("host", "listen"),
    ("port", "listen"),
    ("directory", "data_dir"),
    ("dir", "data_dir"),
    ("data", "data_dir"),
    ("path", "data_dir"),
    ("fsync", "durability"),
    ("sync", "durability"),
    ("cors", "allowed_origins"),
    ("origin", "allowed_origins"),
    ("origins", "allowed_origins"),
    ("hostname", "allowed_hosts"),
    ("hosts", "allowed_hosts"),
    ("level", "log_filter"),
    ("log", "log_filter"),
    ("loglevel", "log_filter"),
    ("verbosity", "log_filter"),
    ("cert", "tls.cert"),
    ("certificate", "tls.cert"),
    ("threads", "ws.shards"),
    ("workers", "ws.shards"),
];

/// The key that is meant by `name`, which is no key: the one with the most similar name, or else that of a synonym.
pub(crate) fn nearest(name: &str) -> Option<&'static SettingKey> {
    let distance = |key: &SettingKey| {
        let last = key.name.rsplit('.').next().unwrap_or(key.name);
        let whole = Some(levenshtein(name, key.name)).filter(|it| *it <= 2.max(key.name.len() / 4));
        let last = Some(levenshtein(name, last)).filter(|it| *it <= last.len() / 4).map(|it| it + 1);
        whole.into_iter().chain(last).min()
    };
    let similar = KEYS.iter().filter_map(|key| Some((distance(key)?, key))).min_by_key(|(it, _)| *it);
    similar.map(|(_, key)| key).or_else(|| {
        let word = name.rsplit(['.', '_']).next()?;
        SYNONYMS.iter().find(|(synonym, _)| *synonym == word).and_then(|(_, key)| find(key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_finds_the_one_that_was_meant() {
        assert_eq!(nearest("durabilty").unwrap().name, "durability");
        assert_eq!(nearest("ws.max_frame_byte").unwrap().name, "ws.max_frame_bytes");
        assert_eq!(nearest("max_frame_bytes").unwrap().name, "ws.max_frame_bytes");
        assert_eq!(nearest("ws_max_topics").unwrap().name, "ws.max_topics");
        assert!(nearest("colour").is_none());
    }

    #[test]
    fn a_name_from_another_program_finds_the_key_with_its_meaning() {
        for (name, key) in [
            ("port", "listen"),
            ("host", "listen"),
            ("http.port", "listen"),
            ("bind_addr", "listen"),
            ("log_level", "log_filter"),
            ("log", "log_filter"),
            ("data", "data_dir"),
            ("cors_origins", "allowed_origins"),
            ("ssl_certificate", "tls.cert"),
        ] {
            assert_eq!(nearest(name).map(|key| key.name), Some(key), "{name}");
        }
        assert!(SYNONYMS.iter().all(|(_, key)| find(key).is_some()));
        // A short word is similar to no long name.
        assert!(["env", "mode", "token", "user"].into_iter().all(|name| nearest(name).is_none()));
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
