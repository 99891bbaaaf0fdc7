//! Reads a rule document's tree into rules and targets, and says everything that is wrong with it.

mod fields;
mod targets;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use relay_core::{DocumentId, Kind};
use relay_events::{CUSTOM_EPHEMERAL_PREFIX, CUSTOM_PREFIX, KINDS};

pub(super) use self::fields::nearest;
use self::fields::{Fields, Reader};
use super::condition;
use super::document::{self, Node};
use super::index::{self, Index};
use super::problems::Problem;
use super::rule::{Pattern, Rule, TargetRef};
use super::target_spec::TargetSpec;
use super::{RuleFormat, RuleSet, Strategy};

/// The most bytes of a rule's name.
const MAX_NAME_BYTES: usize = 64;
/// The most entries of each list of a rule.
const MAX_LIST: usize = 256;
/// How far from 0 a priority may lie.
const MAX_PRIORITY: i64 = 1_000_000;

/// What a rule document says.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) rules: Vec<Rule>,
    pub(super) targets: Vec<TargetSpec>,
    pub(super) warnings: Vec<Problem>,
}

/// Reads `text`, or says what is wrong with it.
pub(super) fn read(text: &str, format: RuleFormat) -> Result<Reading, Vec<Problem>> {
    if text.len() > RuleSet::MAX_BYTES {
        let (bytes, max) = (text.len(), RuleSet::MAX_BYTES);
        return Err(vec![Problem::at(
            1,
            format!("the rule document has {bytes} bytes, at most {max} are allowed"),
        )]);
    }
    let root = document::read(text, format)?;
    let mut reader = Reader::default();
    let mut reading = Reading::default();
    if let Some(fields) = reader.table(&root, &["targets", "rules"]) {
        read_targets(&mut reader, &fields, &mut reading);
        read_rules(&mut reader, &fields, &mut reading);
    }
    if reader.problems.is_empty() { Ok(reading) } else { Err(reader.problems) }
}

fn read_targets(reader: &mut Reader, fields: &Fields<'_, '_>, reading: &mut Reading) {
    let mut lines = HashMap::new();
    for node in reader.list(fields.get("targets"), "[[targets]]", RuleSet::MAX_TARGETS) {
        let Some(spec) = targets::read(reader, node) else { continue };
        if let Some(first) = lines.insert(spec.name.clone(), node.line) {
            reader.subject = Some(format!("target {}", spec.name));
            reader.complain(
                node.line,
                format!("there is another target of this name on line {first}; rename one"),
            );
        }
        reading.targets.push(spec);
    }
    reader.subject = None;
}

fn read_rules(reader: &mut Reader, fields: &Fields<'_, '_>, reading: &mut Reading) {
    let mut lines: HashMap<Arc<str>, usize> = HashMap::new();
    let mut entries = 0_usize;
    let mut conditions: Vec<Written<'_>> = Vec::new();
    let known: std::collections::HashSet<_> =
        reading.targets.iter().map(|target| target.name.clone()).collect();
    for (place, node) in reader.list(fields.get("rules"), "[[rules]]", RuleSet::MAX_RULES).iter().enumerate()
    {
        reader.subject = Some(format!("rule {}", place + 1));
        let Some((rule, when)) = read_rule(reader, node) else { continue };
        if let Some(first) = lines.insert(Arc::clone(&rule.name), node.line) {
            reader.complain(
                node.line,
                format!("there is another rule of this name on line {first}; rename one"),
            );
        }
        for target in rule.targets.iter().chain(&rule.fallback) {
            if let TargetRef::Name(name) = target
                && !known.contains(name)
            {
                reading.warnings.push(Problem {
                    line: node.line,
                    subject: reader.subject.clone(),
                    reason: format!(
                        "no [[targets]] entry is called `{name}`; its events wait until such a service registers"
                    ),
                });
            }
        }
        entries += Index::entries(&rule);
        if let Some((when, line)) = when {
            conditions.push(Written {
                rule: reading.rules.len(),
                text: when,
                line,
                subject: reader.subject.clone(),
            });
        }
        reading.rules.push(rule);
    }
    reader.subject = None;
    if entries > index::MAX_ENTRIES {
        let max = index::MAX_ENTRIES;
        reader.complain(
            1,
            format!(
                "the rules' kinds times documents are {entries}, at most {max} are allowed; use prefixes"
            ),
        );
    }
    compile(reader, conditions, &mut reading.rules);
}

/// A condition before it is compiled.
struct Written<'a> {
    rule: usize,
    text: &'a str,
    line: usize,
    subject: Option<String>,
}

fn compile(reader: &mut Reader, written: Vec<Written<'_>>, rules: &mut [Rule]) {
    let texts: Vec<&str> = written.iter().map(|condition| condition.text).collect();
    let compiled = match condition::compile_all(&texts) {
        Ok(compiled) => compiled,
        Err(error) => return reader.complain(1, format!("conditions cannot be compiled: {error}")),
    };
    for (Written { rule, line, subject, .. }, compiled) in written.into_iter().zip(compiled) {
        match compiled {
            Ok(condition) => {
                if let Some(rule) = rules.get_mut(rule) {
                    rule.when = Some(condition);
                }
            }
            Err(mistakes) => {
                reader.subject = subject;
                for mistake in mistakes {
                    reader.complain(line, format!("`when`, {mistake}"));
                }
            }
        }
    }
    reader.subject = None;
}

const RULE_FIELDS: &[&str] = &[
    "name",
    "priority",
    "kinds",
    "documents",
    "when",
    "targets",
    "strategy",
    "fallback",
    "continue",
    "enabled",
];

/// The rule without its condition, and the condition's text with its line.
fn read_rule<'n>(reader: &mut Reader, node: &'n Node<'_>) -> Option<(Rule, Option<(&'n str, usize)>)> {
    let fields = reader.table(node, RULE_FIELDS)?;
    let name = reader.required_text(&fields, "name", node.line);
    if let Some((name, line)) = name {
        if is_rule_name(name) {
            reader.subject = Some(format!("rule {name}"));
        } else {
            let name: String = name.chars().take(MAX_NAME_BYTES).collect();
            reader.complain(
                line,
                format!("the name `{name}` must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
            );
        }
    }
    let targets = read_target_refs(reader, &fields, "targets");
    if targets.is_empty() {
        let line = fields.get("targets").map_or(node.line, |targets| targets.line);
        reader.complain_once(line, "`targets` must name at least one target, or `capability:<name>`");
    }
    let rule = Rule {
        name: name.map_or("", |(name, _)| name).into(),
        priority: reader.int(&fields, "priority", -MAX_PRIORITY..=MAX_PRIORITY).unwrap_or(0),
        kinds: reader.texts(&fields, "kinds", MAX_LIST, read_kind),
        documents: reader.texts(&fields, "documents", MAX_LIST, read_document),
        when: None,
        targets,
        strategy: reader.with_serde::<Strategy>(&fields, "strategy").unwrap_or_default(),
        fallback: read_target_refs(reader, &fields, "fallback"),
        continues: reader.bool(&fields, "continue").unwrap_or(false),
        enabled: reader.bool(&fields, "enabled").unwrap_or(true),
        condition_errors: AtomicU64::new(0),
    };
    let when = reader.text(&fields, "when");
    Some((rule, when))
}

fn is_rule_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn read_target_refs(reader: &mut Reader, fields: &Fields<'_, '_>, key: &str) -> Vec<TargetRef> {
    reader.texts(fields, key, MAX_LIST, TargetRef::parse)
}

fn read_document(text: &str) -> Result<Pattern, String> {
    let pattern = Pattern::parse(text)?;
    match &pattern {
        Pattern::Exact(id) | Pattern::Prefix(id) if id.len() > DocumentId::MAX_BYTES => {
            Err(format!("a document's id has at most {} bytes, this has {}", DocumentId::MAX_BYTES, id.len()))
        }
        _ => Ok(pattern),
    }
}

/// Kinds must exist, and prefixes must be able to match some, of those that are routed.
fn read_kind(text: &str) -> Result<Pattern, String> {
    const EPHEMERAL: &str = "is ephemeral; only durable kinds are routed, so leave it out";
    let pattern = Pattern::parse(text)?;
    match &pattern {
        Pattern::Exact(name) => match relay_events::kind(name) {
            Ok(kind) if kind.is_durable() => Ok(pattern),
            Ok(_) => Err(format!("kind `{name}` {EPHEMERAL}")),
            Err(error) => Err(match nearest(name, KINDS.iter().map(Kind::as_str)) {
                Some(near) => format!("{error}; did you mean `{near}`?"),
                None => error.to_string(),
            }),
        },
        Pattern::Prefix(prefix) => {
            let prefix = &**prefix;
            let of_vocabulary = || KINDS.iter().filter(|kind| kind.as_str().starts_with(prefix));
            let may_be_custom = prefix.starts_with(CUSTOM_PREFIX) || CUSTOM_PREFIX.starts_with(prefix);
            if may_be_custom && prefix.starts_with(CUSTOM_EPHEMERAL_PREFIX) {
                return Err(format!("every kind of `{text}` {EPHEMERAL}"));
            }
            if may_be_custom {
                // Checks length and characters; what may follow is unknown.
                return match prefix
                    .strip_prefix(CUSTOM_PREFIX)
                    .map(|_| relay_events::kind(&format!("{prefix}a")))
                {
                    Some(Err(error)) => Err(error.to_string()),
                    _ => Ok(pattern),
                };
            }
            match of_vocabulary().next() {
                None => Err(format!("no kind begins with `{prefix}`; your own begin with `{CUSTOM_PREFIX}`")),
                Some(_) if !of_vocabulary().any(Kind::is_durable) => {
                    Err(format!("every kind of `{text}` {EPHEMERAL}"))
                }
                Some(_) => Ok(pattern),
            }
        }
    }
}
