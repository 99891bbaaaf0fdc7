//! Dead letters in number and size: pages, and retries of many.

use std::time::Duration;

use relay_core::{Draft, Payload};

use crate::support::{Recorder, TO_A, World, attach, name, note, patient, refused, until};

/// An `x-note` event of more than `bytes`.
fn long_note(document: &str, n: usize, bytes: usize) -> Draft {
    let mut draft = note(document, n);
    draft.payload = Payload::json(&serde_json::json!({ "n": n, "text": "x".repeat(bytes) })).unwrap();
    draft
}

#[tokio::test(start_paused = true)]
async fn a_page_of_dead_letters_is_bounded_in_bytes_and_leads_to_the_next() {
    let world = World::new();
    let router = world.router(TO_A).await;
    attach(&router, "a", &Recorder::with(|_, _| Err(refused())), patient()).await;
    let target = name("a");
    for n in 1..=5 {
        world.publish(long_note("d", n, 400_000)).await;
    }
    until(|| router.target(&target).unwrap().dead_letters == 5).await;
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = router.dead_letters(&target, after, 1_000).await.unwrap();
        pages.push(page.dead_letters.len());
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [2, 2, 1]);
    // A page in number alone, at whose end there is nothing more.
    let page = router.dead_letters(&target, None, 1).await.unwrap();
    let page = router.dead_letters(&target, page.next_after, 1).await.unwrap();
    assert_eq!(page.dead_letters.len(), 1);
    // What is larger than a page is dropped as a whole too.
    assert_eq!(router.drop_dead_letters(&target).await.unwrap(), 5);
    router.stop(Duration::from_secs(5)).await;
}
