//! The cost of one message in the codec: `cargo bench -p relay-ws --bench codec`.
//!
//! `broadcast/first` encodes an event's message. `broadcast/again` is the cost of every further receiver before its socket.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark is a test of speed")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use relay_core::{Actor, DocumentId, Draft, Epoch, Event, Seq, Timestamp, UserId};
use relay_events::{DocumentEdited, Patch, TypedPayload};
use relay_ws::codec::{self, Status};
use serde_json::json;

fn edit() -> Event {
    let patches = vec![Patch { position: 7, deleted: 0, inserted: "h".into() }];
    let payload = DocumentEdited::Patches { patches, base: None }.to_payload().unwrap();
    let draft = Draft::new(DocumentId::new("notes").unwrap(), DocumentEdited::KIND, payload)
        .actor(Actor::User(UserId::new("ada").unwrap()));
    draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::from_micros(1))
}

fn codec(c: &mut Criterion) {
    let text = r#"["1","2","document:notes","document.edited",{"patches":[[7,0,"h"]]}]"#;
    let binary = b"\x00\x01\x01\x0e\x0f12document:notesdocument.edited0123456789";
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    group.bench_function("text", |b| b.iter(|| codec::decode_text(black_box(text)).unwrap().topic.len()));
    group.bench_function("serde_json::Value", |b| {
        b.iter(|| serde_json::from_str::<serde_json::Value>(black_box(text)).unwrap());
    });
    group.bench_function("binary", |b| {
        b.iter(|| codec::decode_binary(black_box(binary)).unwrap().topic.len());
    });
    group.finish();

    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(1));
    let ack = json!({"seq": 7, "offset": 42, "duplicate": false});
    group.bench_function("reply", |b| {
        b.iter(|| codec::encode_reply(Some("1"), Some("2"), "document:notes", Status::Ok, black_box(&ack)));
    });
    group.bench_function("broadcast/first", |b| {
        b.iter_batched_ref(edit, |event| codec::encode_broadcast(event), BatchSize::SmallInput);
    });
    let event = edit();
    group.bench_function("broadcast/again", |b| b.iter(|| codec::encode_broadcast(black_box(&event))));
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
