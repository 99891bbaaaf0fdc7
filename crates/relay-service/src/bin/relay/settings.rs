//! The configuration of `relay serve`: the values in force, and the source of each.
//!
//! There are four layers, each over the one before: defaults, the file, the environment, flags. The values themselves are
//! the crates' own configuration structs. The [table of keys](key::KEYS) reads text into them, so that no field and no
//! default is written twice. (figment has layers and sources, but needs one `Deserialize` struct of everything, which
//! would be that second copy.)

pub(crate) mod error;
pub(crate) mod key;
pub(crate) mod layers;
pub(crate) mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use relay_bus::BusConfig;
use relay_core::{MemoryLimits, Retention};
use relay_log::{LogConfig, LogDurability};
use relay_presence::{LockConfig, PresenceConfig};
use relay_router::RouterConfig;
use relay_router::rules::{RuleDocument, RuleFormat};
use relay_service::{HttpConfig, ServiceConfig, Storage, TlsConfig};
use relay_ws::WsConfig;

use self::error::SettingsError;

/// All values that can be configured.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_handshake_timeout: Duration,
    pub(crate) durability: DurabilityLevel,
    pub(crate) stop_timeout: Duration,
    pub(crate) log_format: LogFormat,
    pub(crate) log_filter: LogFilter,
    pub(crate) retention: Retention,
    pub(crate) memory: MemoryLimits,
    pub(crate) bus: BusConfig,
    pub(crate) log: LogConfig,
    pub(crate) ws: WsConfig,
    pub(crate) presence: PresenceConfig,
    pub(crate) locks: LockConfig,
    pub(crate) http: HttpConfig,
    pub(crate) router_rules: Option<PathBuf>,
    pub(crate) router: RouterConfig,
}

impl Default for Settings {
    fn default() -> Self {
        let service = ServiceConfig::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            tls_cert: None,
            tls_key: None,
            tls_handshake_timeout: TlsConfig::HANDSHAKE_TIMEOUT,
            durability: DurabilityLevel::Synced,
            stop_timeout: service.stop_timeout,
            log_format: LogFormat::Pretty,
            log_filter: LogFilter("info,fjall=warn,lsm_tree=warn".to_owned()),
            retention: Retention::default(),
            memory: service.memory,
            bus: service.bus,
            log: LogConfig::new("relay-data"),
            ws: service.ws,
            presence: service.presence,
            locks: service.locks,
            http: service.http,
            router_rules: None,
            // Its directory is in that of the log.
            router: RouterConfig::new("relay-data/router"),
        }
    }
}

impl Settings {
    /// The service that these settings describe.
    pub(crate) fn service(self) -> Result<ServiceConfig, SettingsError> {
        let handshake_timeout = self.tls_handshake_timeout;
        let tls = match (self.tls_cert, self.tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(TlsConfig { cert, key, handshake_timeout }),
            (Some(_), None) => return Err(SettingsError::HalfTls { given: "tls.cert", missing: "tls.key" }),
            (None, Some(_)) => return Err(SettingsError::HalfTls { given: "tls.key", missing: "tls.cert" }),
        };
        let mut router = self.router;
        router.directory = self.log.directory.join("router");
        if let Some(path) = &self.router_rules {
            router.rules = rules(path)?;
        }
        // Without a log there is nothing to route from.
        let router = (self.durability != DurabilityLevel::Memory).then_some(router);
        let log = |durability| {
            let mut log = self.log.clone();
            log.durability = durability;
            log.retention = self.retention;
            Storage::Embedded(log)
        };
        let mut bus = self.bus;
        bus.retention = self.retention;
        let mut service = ServiceConfig::default();
        service.listen = Some(self.listen);
        service.tls = tls;
        service.storage = match self.durability {
            DurabilityLevel::Memory => Storage::Memory,
            DurabilityLevel::Logged => log(LogDurability::Logged),
            DurabilityLevel::Synced => log(LogDurability::Synced),
        };
        service.memory = self.memory;
        service.bus = bus;
        service.ws = self.ws;
        service.presence = self.presence;
        service.locks = self.locks;
        service.router = router;
        service.http = self.http;
        service.stop_timeout = self.stop_timeout;
        Ok(service)
    }
}

/// Reads a rule document. A name that ends in `.json` is JSON, any other TOML.
pub(crate) fn rules(path: &Path) -> Result<RuleDocument, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })?;
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    Ok(RuleDocument { text, format: if is_json { RuleFormat::Json } else { RuleFormat::Toml } })
}

/// The moment at which an event is acknowledged and becomes visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DurabilityLevel {
    /// At once.
    Memory,
    /// Once it is written.
    Logged,
    /// Once it is on disk.
    Synced,
}
value::words!(DurabilityLevel, Memory = "memory", Logged = "logged", Synced = "synced");

/// The format of the server's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}
value::words!(LogFormat, Pretty = "pretty", Json = "json");

/// The filter of the server's log lines: directives that `EnvFilter` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogFilter(pub(crate) String);

impl value::SettingValue for LogFilter {
    fn allowed() -> String {
        "a level (`error`, `warn`, `info`, `debug`, `trace`) or directives such as `info,relay_ws=debug`"
            .to_owned()
    }

    fn read(text: &str) -> Option<Self> {
        let valid = tracing_subscriber::EnvFilter::try_new(text).is_ok();
        (valid && !text.is_empty()).then(|| Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}
