//! The whole service, held to the suites of `relay-core`: its bus over the embedded log and in memory, and its presence.

use relay_core::testing::{presence_suite, pubsub_suite};
use relay_log::LogConfig;
use relay_service::{RelayService, ServiceConfig, Storage};

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_over_the_embedded_log_passes_the_suite() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = ServiceConfig::in_process();
    config.storage = Storage::Embedded(LogConfig::new(directory.path().join("log")));
    let service = RelayService::start(config).await.unwrap();
    pubsub_suite(service.bus(), service.bus()).await;
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_bus_in_memory_passes_the_suite() {
    let service = RelayService::start(ServiceConfig::in_process()).await.unwrap();
    pubsub_suite(service.bus(), service.bus()).await;
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_presence_of_a_service_passes_the_suite() {
    let service = RelayService::start(ServiceConfig::in_process()).await.unwrap();
    presence_suite(service.presence()).await;
    service.stop().await.unwrap();
}
