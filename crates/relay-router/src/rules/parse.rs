//! The parser of rule documents: it turns the tree of a document into rules and targets, and collects every
//! problem.

mod fields;
mod targets;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use relay_core::{DocumentId, Kind};
use relay_events::{CUSTOM_EPHEMERAL_PREFIX, CUSTOM_PREFIX, KINDS};

use self::fields::{TableFields, TableReader};
use super::closest_match::closest_match;
use super::condition;
use super::index::{self, Index};
use super::problems::RuleProblem;
use super::rule::{Pattern, Rule, TargetRef};
use super::rule_document::RuleFormat;
use super::strategy::Strategy;
use super::target_spec::TargetSpec;
use super::tree::{self, Node};

/// The most bytes of a rule document.
pub(super) const MAX_BYTES: usize = 1024 * 1024;
/// The most rules of a document.
pub(super) const MAX_RULES: usize = 1_000;
/// The most targets of a document.
pub(super) const MAX_TARGETS: usize = 1_000;
/// The most bytes of a rule's name.
const MAX_NAME_BYTES: usize = 64;
/// The most entries of each list of a rule.
const MAX_LIST: usize = 256;
/// The largest distance of a priority from 0.
const MAX_PRIORITY: i64 = 1_000_000;

/// The content of a rule document.
#[derive(Default)]
pub(super) struct ParsedRules {
    pub(super) rules: Vec<Rule>,
    pub(super) targets: Vec<TargetSpec>,
    pub(super) warnings: Vec<RuleProblem>,
}

/// Parses a rule document.
///
/// # Errors
/// Every problem of the document.
pub(super) fn parse(text: &str, format: RuleFormat) -> Result<ParsedRules, Vec<RuleProblem>> {
    if text.len() > MAX_BYTES {
        let (bytes, max) = (text.len(), MAX_BYTES);
        return Err(vec![RuleProblem::at(
            1,
            format!("the rule document has {bytes} bytes, at most {max} are allowed"),
        )]);
    }
    let root = tree::parse(text, format)?;
    let mut reader = TableReader::default();
    let mut parsed = ParsedRules::default();
    if let Some(fields) = reader.table(&root, &["targets", "rules"]) {
        read_targets(&mut reader, &fields, &mut parsed);
        read_rules(&mut reader, &fields, &mut parsed);
    }
    if reader.problems.is_empty() { Ok(parsed) } else { Err(reader.problems) }
}

fn read_targets(reader: &mut TableReader, fields: &TableFields<'_, '_>, parsed: &mut ParsedRules) {
    let mut lines = HashMap::new();
    for node in reader.list(fields.get("targets"), "[[targets]]", MAX_TARGETS) {
        let Some(spec) = targets::read(reader, node) else { continue };
        if let Some(first) = lines.insert(spec.name.clone(), node.line) {
            reader.subject = Some(format!("target {}", spec.name));
            reader.report(
                node.line,
                format!("there is another target of this name on line {first}; rename one"),
            );
        }
        parsed.targets.push(spec);
    }
    reader.subject = None;
}

fn read_rules(reader: &mut TableReader, fields: &TableFields<'_, '_>, parsed: &mut ParsedRules) {
    let mut lines: HashMap<Arc<str>, usize> = HashMap::new();
    let mut entries = 0_usize;
    let mut conditions: Vec<UncompiledCondition<'_>> = Vec::new();
    let known: std::collections::HashSet<_> =
        parsed.targets.iter().map(|target| target.name.clone()).collect();
    for (index, node) in reader.list(fields.get("rules"), "[[rules]]", MAX_RULES).iter().enumerate() {
        reader.subject = Some(format!("rule {}", index + 1));
        let Some((rule, when)) = read_rule(reader, node) else { continue };
        if let Some(first) = lines.insert(Arc::clone(&rule.name), node.line) {
            reader
                .report(node.line, format!("there is another rule of this name on line {first}; rename one"));
        }
        for target in rule.targets.iter().chain(&rule.fallback) {
            if let TargetRef::Name(name) = target
                && !known.contains(name)
            {
                parsed.warnings.push(RuleProblem {
                    line: node.line,
                    subject: reader.subject.clone(),
                    reason: format!(
                        "no [[targets]] entry is called `{name}`; its events wait until such a service registers"
                    ),
                });
            }
        }
        entries += Index::entry_count(&rule);
        if let Some((when, line)) = when {
            conditions.push(UncompiledCondition {
                rule: parsed.rules.len(),
                text: when,
                line,
                subject: reader.subject.clone(),
            });
        }
        parsed.rules.push(rule);
    }
    reader.subject = None;
    if entries > index::MAX_ENTRIES {
        let max = index::MAX_ENTRIES;
        reader.report(
            1,
            format!(
                "the rules' kinds times documents are {entries}, at most {max} are allowed; use prefixes"
            ),
        );
    }
    compile_conditions(reader, conditions, &mut parsed.rules);
}

/// A condition before it is compiled.
struct UncompiledCondition<'a> {
    rule: usize,
    text: &'a str,
    line: usize,
    subject: Option<String>,
}

fn compile_conditions(reader: &mut TableReader, written: Vec<UncompiledCondition<'_>>, rules: &mut [Rule]) {
    let texts: Vec<&str> = written.iter().map(|condition| condition.text).collect();
    let compiled = match condition::compile_all(&texts) {
        Ok(compiled) => compiled,
        Err(error) => return reader.report(1, format!("conditions cannot be compiled: {error}")),
    };
    for (UncompiledCondition { rule, line, subject, .. }, compiled) in written.into_iter().zip(compiled) {
        match compiled {
            Ok(condition) => {
                if let Some(rule) = rules.get_mut(rule) {
                    rule.when = Some(condition);
                }
            }
            Err(problems) => {
                reader.subject = subject;
                for problem in problems {
                    reader.report(line, format!("`when`, {problem}"));
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

/// Reads a rule without its condition, and the condition's text with its line.
fn read_rule<'n>(reader: &mut TableReader, node: &'n Node<'_>) -> Option<(Rule, Option<(&'n str, usize)>)> {
    let fields = reader.table(node, RULE_FIELDS)?;
    let name = reader.required_text(&fields, "name", node.line);
    if let Some((name, line)) = name {
        if is_rule_name(name) {
            reader.subject = Some(format!("rule {name}"));
        } else {
            let name: String = name.chars().take(MAX_NAME_BYTES).collect();
            reader.report(
                line,
                format!("the name `{name}` must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
            );
        }
    }
    let targets = read_target_refs(reader, &fields, "targets");
    if targets.is_empty() {
        let line = fields.get("targets").map_or(node.line, |targets| targets.line);
        reader.report_once(line, "`targets` must name at least one target, or `capability:<name>`");
    }
    let rule = Rule {
        name: name.map_or("", |(name, _)| name).into(),
        priority: reader.int(&fields, "priority", -MAX_PRIORITY..=MAX_PRIORITY).unwrap_or(0),
        kinds: reader.texts(&fields, "kinds", MAX_LIST, parse_kind_pattern),
        documents: reader.texts(&fields, "documents", MAX_LIST, parse_document_pattern),
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

fn read_target_refs(reader: &mut TableReader, fields: &TableFields<'_, '_>, key: &str) -> Vec<TargetRef> {
    reader.texts(fields, key, MAX_LIST, TargetRef::parse)
}

fn parse_document_pattern(text: &str) -> Result<Pattern, String> {
    let pattern = Pattern::parse(text)?;
    match &pattern {
        Pattern::Exact(id) | Pattern::Prefix(id) if id.len() > DocumentId::MAX_BYTES => {
            Err(format!("a document's id has at most {} bytes, this has {}", DocumentId::MAX_BYTES, id.len()))
        }
        _ => Ok(pattern),
    }
}

/// Parses a pattern of kinds. An exact kind must exist and be stored; a prefix must match at least one such
/// kind.
fn parse_kind_pattern(text: &str) -> Result<Pattern, String> {
    const EPHEMERAL: &str = "is ephemeral; only kinds that are stored are routed, so leave it out";
    let pattern = Pattern::parse(text)?;
    match &pattern {
        Pattern::Exact(name) => match relay_events::kind(name) {
            Ok(kind) if !kind.is_ephemeral() => Ok(pattern),
            Ok(_) => Err(format!("kind `{name}` {EPHEMERAL}")),
            Err(error) => Err(match closest_match(name, KINDS.iter().map(Kind::as_str)) {
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
                // Checks the length and the characters of a prefix of custom kinds.
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
                Some(_) if of_vocabulary().all(Kind::is_ephemeral) => {
                    Err(format!("every kind of `{text}` {EPHEMERAL}"))
                }
                Some(_) => Ok(pattern),
            }
        }
    }
}
