//! The time to encode and decode an event in each form, beside plain `serde_json` of a struct with the same content.
//!
//! `cargo bench -p relay-events --bench codec`

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use relay_core::{Actor, DocumentId, Draft, Epoch, Event, Offset, Payload, Seq, Timestamp, UserId};
use relay_events::{DocumentEdited, Patch, TypedPayload, binary, cloudevents, json};
use serde::{Deserialize, Serialize};

fn event(inserted: usize) -> Event {
    let patch = Patch { position: 1024, deleted: 0, inserted: "h".repeat(inserted) };
    let edit = DocumentEdited::Patches { patches: vec![patch], base: None };
    let draft =
        Draft::new(DocumentId::new("notes").unwrap(), DocumentEdited::KIND, edit.to_payload().unwrap())
            .actor(Actor::User(UserId::new("ada").unwrap()));
    let time = Timestamp::from_micros(1_767_323_045_000_006);
    let mut event = draft.into_event(Epoch::from_u64(7), Some(Seq::new(42)), time);
    event.offset = Some(Offset::new(99));
    event
}

/// The baseline: a plain struct with the same content.
#[derive(Serialize, Deserialize)]
struct Plain {
    id: String,
    document: String,
    kind: String,
    seq: u64,
    epoch: String,
    offset: u64,
    time: String,
    actor: String,
    payload: DocumentEdited,
}

fn plain(event: &Event) -> Plain {
    let Payload::Json(payload) = &event.payload else { unreachable!("made as JSON") };
    Plain {
        id: event.id.to_string(),
        document: event.document.to_string(),
        kind: event.kind.to_string(),
        seq: 42,
        epoch: event.epoch.to_string(),
        offset: 99,
        time: event.time.to_string(),
        actor: event.actor.to_string(),
        payload: serde_json::from_str(payload.as_str()).unwrap(),
    }
}

fn draft(event: &Event) -> String {
    let Payload::Json(payload) = &event.payload else { unreachable!("made as JSON") };
    format!(r#"{{"kind":"{}","payload":{},"actor":"{}"}}"#, event.kind, payload.as_str(), event.actor)
}

fn codec(criterion: &mut Criterion) {
    for (size, inserted) in [("edit", 1), ("4KiB", 4096)] {
        let event = event(inserted);
        let plain = plain(&event);
        let mut group = criterion.benchmark_group(format!("codec/{size}"));

        let form = json::encode(&event);
        group.throughput(Throughput::Bytes(form.len() as u64));
        group.bench_function(BenchmarkId::new("encode", "plain serde_json"), |b| {
            b.iter(|| serde_json::to_vec(black_box(&plain)));
        });
        group.bench_function(BenchmarkId::new("encode", "json"), |b| {
            b.iter(|| {
                let mut out = Vec::new();
                json::encode_to(black_box(&event), &mut out);
                out
            });
        });
        group.bench_function(BenchmarkId::new("decode", "plain serde_json"), |b| {
            b.iter(|| serde_json::from_slice::<Plain>(black_box(&form)));
        });
        group.bench_function(BenchmarkId::new("decode", "json"), |b| {
            b.iter(|| json::decode(black_box(&form)));
        });

        // The server's work for a client's push: it reads the draft and checks that the payload fits its kind.
        let form = draft(&event);
        group.throughput(Throughput::Bytes(form.len() as u64));
        group.bench_function(BenchmarkId::new("decode", "draft"), |b| {
            b.iter(|| json::decode_draft(&event.document, black_box(form.as_bytes())));
        });

        let form = binary::encode(&event);
        group.throughput(Throughput::Bytes(form.len() as u64));
        group.bench_function(BenchmarkId::new("encode", "binary"), |b| {
            b.iter(|| binary::encode(black_box(&event)));
        });
        group.bench_function(BenchmarkId::new("decode", "binary"), |b| {
            b.iter(|| binary::decode(black_box(&form)));
        });

        let form = cloudevents::encode(&event);
        group.throughput(Throughput::Bytes(form.len() as u64));
        group.bench_function(BenchmarkId::new("encode", "cloudevents"), |b| {
            b.iter(|| cloudevents::encode(black_box(&event)));
        });
        group.bench_function(BenchmarkId::new("decode", "cloudevents"), |b| {
            b.iter(|| cloudevents::decode(black_box(&form)));
        });
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
