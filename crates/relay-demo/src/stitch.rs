//! STITCH: the results of the other services for a document, put together into one event that clients can show.

use std::collections::VecDeque;

use relay_core::{Actor, Event};
use relay_events::{AnnotationResolved, Body};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cast::Tag;
use super::documents::Fold;

/// The number of latest annotations whose tags are kept.
const MOST_ANNOTATIONS: usize = 100;
/// The number of best tags that are shown.
const MOST_TAGS: usize = 12;

/// The latest results for one document.
#[derive(Default)]
pub(crate) struct Summary {
    quality: Option<ServiceResult>,
    metadata: Option<ServiceResult>,
    /// The tags by annotation, the latest last.
    tags: VecDeque<Tagged>,
}

/// One service's result.
struct ServiceResult {
    service: String,
    seq: u64,
    result: Value,
}

#[derive(Deserialize)]
struct Tagged {
    annotation: String,
    tags: Vec<Tag>,
}

impl Fold for Summary {
    const PUBLISHES: &'static str = "x-summary";

    fn apply(&mut self, event: &Event) -> bool {
        if let Ok(Body::AnnotationResolved(AnnotationResolved { annotation, .. })) = Body::of(event) {
            self.tags.retain(|tagged| tagged.annotation != annotation);
            return false;
        }
        // Only results of services count.
        let (Actor::Service(service), Ok(Body::Custom(json)), Some(seq)) =
            (&event.actor, Body::of(event), event.seq)
        else {
            return false;
        };
        let part = |result| Some(ServiceResult { service: service.to_string(), seq: seq.get(), result });
        match event.kind.as_str() {
            "x-quality" => self.quality = serde_json::from_slice(json.as_bytes()).ok().and_then(part),
            "x-metadata" => self.metadata = serde_json::from_slice(json.as_bytes()).ok().and_then(part),
            "x-tags" => {
                let Ok(tagged) = serde_json::from_slice::<Tagged>(json.as_bytes()) else { return false };
                self.tags.retain(|known| known.annotation != tagged.annotation);
                self.tags.push_back(tagged);
                if self.tags.len() > MOST_ANNOTATIONS {
                    self.tags.pop_front();
                }
            }
            _ => return false,
        }
        true
    }

    fn result(&self) -> Box<dyn FnOnce() -> Value + Send> {
        let part = |part: &Option<ServiceResult>| {
            part.as_ref().map(
                |ServiceResult { service, seq, result }| json!({"by": service, "seq": seq, "result": result}),
            )
        };
        let result = json!({
            "quality": part(&self.quality),
            "metadata": part(&self.metadata),
            "tags": self.best_tags(),
            "annotations": self.tags.len(),
        });
        Box::new(move || result)
    }
}

impl Summary {
    /// Returns the tags of all annotations, ordered by the number of annotations that have them, then by score.
    fn best_tags(&self) -> Vec<Value> {
        let mut best: Vec<(Tag, usize)> = Vec::new();
        for tag in self.tags.iter().flat_map(|tagged| &tagged.tags) {
            match best.iter_mut().find(|(known, _)| known.tag == tag.tag) {
                Some((known, count)) => {
                    *count += 1;
                    known.score = known.score.max(tag.score);
                }
                None => best.push((tag.clone(), 1)),
            }
        }
        best.sort_by(|(a, count_a), (b, count_b)| count_b.cmp(count_a).then(b.score.total_cmp(&a.score)));
        best.into_iter()
            .take(MOST_TAGS)
            .map(|(tag, count)| json!({"tag": tag.tag, "annotations": count}))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::shared_text::tests::event_by;
    use super::*;

    fn summary(events: &[(&str, &str, Value)]) -> Value {
        let mut summary = Summary::default();
        for (seq, (kind, actor, payload)) in (1..).zip(events) {
            summary.apply(&event_by(seq, kind, actor, payload));
        }
        summary.result()()
    }

    #[test]
    fn the_latest_result_of_each_kind_is_in_it() {
        let found = summary(&[
            ("x-quality", "service:sift", json!({"words": 1})),
            ("x-metadata", "service:spawn", json!({"title": "Plan"})),
            ("x-quality", "service:sift", json!({"words": 2})),
        ]);
        assert_eq!(found["quality"], json!({"by": "sift", "seq": 3, "result": {"words": 2}}));
        assert_eq!(found["metadata"]["result"]["title"], "Plan");
        assert_eq!((found["tags"].clone(), found["annotations"].clone()), (json!([]), json!(0)));
    }

    #[test]
    fn tags_of_several_annotations_come_first_and_those_of_resolved_ones_go() {
        let tags = |annotation: &str, tags: &[(&str, f64)]| {
            let tags: Vec<_> = tags.iter().map(|(tag, score)| json!({"tag": tag, "score": score})).collect();
            json!({"annotation": annotation, "tags": tags})
        };
        let mut events = vec![
            ("x-tags", "service:cast", tags("a", &[("retry budget", 4.0), ("timeouts", 1.0)])),
            ("x-tags", "service:cast", tags("b", &[("timeouts", 1.0), ("lost connection", 9.0)])),
        ];
        let names = |found: &Value| {
            let tags = found["tags"].as_array().cloned().unwrap_or_default();
            tags.iter().map(|tag| tag["tag"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&summary(&events)), ["timeouts", "lost connection", "retry budget"]);
        events.push(("annotation.resolved", "user:ada", json!({"annotation": "b"})));
        assert_eq!(names(&summary(&events)), ["retry budget", "timeouts"]);
    }

    #[test]
    fn a_person_cannot_speak_for_a_service() {
        let found = summary(&[("x-quality", "user:mallory", json!({"words": 1000}))]);
        assert_eq!(found["quality"], Value::Null);
    }
}
