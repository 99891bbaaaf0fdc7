//! The results of the suite, and the page that shows them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

/// The results of a run.
#[derive(Deserialize)]
pub(crate) struct Results {
    /// The names of sections, by number.
    sections: BTreeMap<String, String>,
    /// The cases in the order of their numbers.
    pub(crate) cases: Vec<Case>,
}

/// The result of a case, in the suite's words.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) id: String,
    /// The suite's judgement of the server's messages.
    behavior: String,
    /// The suite's judgement of the closing handshake.
    close: String,
    /// The finding in a sentence.
    pub(crate) reason: String,
}

impl Case {
    /// Tells if the case passes. Informational cases have no wrong result, and a non-strict result is allowed.
    fn passes(&self) -> bool {
        matches!(self.behavior.as_str(), "OK" | "NON-STRICT" | "INFORMATIONAL")
            && matches!(self.close.as_str(), "OK" | "INFORMATIONAL")
    }

    /// Returns one word for both judgements.
    fn result(&self) -> &str {
        if self.passes() || self.close == "OK" { &self.behavior } else { "FAILED" }
    }

    fn section(&self) -> String {
        // 1.1.8 is in 1.1, and 2.11 in 2.
        self.id.rsplit_once('.').map_or(&*self.id, |(section, _)| section).to_owned()
    }
}

impl Results {
    pub(crate) fn failed(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|case| !case.passes())
    }

    /// Returns the page as Markdown: sections, then every case.
    pub(crate) fn page(&self) -> String {
        let count =
            |cases: &[&Case], result: &str| cases.iter().filter(|case| case.result() == result).count();
        let mut sections: Vec<(String, Vec<&Case>)> = Vec::new();
        for case in &self.cases {
            match sections.last_mut() {
                Some((section, cases)) if *section == case.section() => cases.push(case),
                _ => sections.push((case.section(), vec![case])),
            }
        }
        let all: Vec<&Case> = self.cases.iter().collect();
        let words = ["OK", "NON-STRICT", "INFORMATIONAL"].map(|word| (word, count(&all, word)));
        let failed = self.failed().count();
        let mut page = format!(
            "# WebSocket conformance\n\n\
             Every case of the [Autobahn testsuite](https://github.com/crossbario/autobahn-testsuite) (PyPI package \
             `autobahntestsuite` 25.10.1) against the real server over real sockets, compression on. The cases are the \
             package's own; they are driven by `xtask/harness/src/conformance/suite.py` on Python 3, with 100 messages where a \
             case of 9.7, 9.8, 12 or 13 has 1,000, and with five times the package's patience for late answers. \
             The npm package `ws` and the \
             Python package `websockets` pass beside them: text, binary, fragments, ping and close, with and without \
             `permessage-deflate`.\n\n\
             This page is written by\n\n```sh\ncargo xtask conformance\n```\n\n\
             which fails when a case fails. `cargo xtask ci` runs it with `--quick`: sections 1 to 7 and 10 whole, and \
             samples of 9, 12 and 13.\n\n\
             **{} cases:** ",
            self.cases.len()
        );
        for (word, cases) in words {
            let _ = write!(page, "{cases} {word}, ");
        }
        let _ = write!(
            page,
            "{failed} failed. An informational case has no wrong result, and a non-strict result is allowed.\n\n\
             | section | | cases | passed |\n| --- | --- | ---: | ---: |\n"
        );
        for (section, cases) in &sections {
            let name = self.sections.get(section).map_or("", String::as_str);
            let passed = cases.iter().filter(|case| case.passes()).count();
            let _ = writeln!(page, "| {section} | {name} | {} | {passed} |", cases.len());
        }
        page.push_str("\n## Every case\n\n| case | result | close |\n| --- | --- | --- |\n");
        for case in &self.cases {
            let _ = writeln!(page, "| {} | {} | {} |", case.id, case.result(), case.close);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(behavior: &str, close: &str) -> Results {
        let case = Case {
            id: "1.1.2".to_owned(),
            behavior: behavior.to_owned(),
            close: close.to_owned(),
            reason: String::new(),
        };
        Results { sections: BTreeMap::from([("1.1".to_owned(), "Text".to_owned())]), cases: vec![case] }
    }

    #[test]
    fn a_case_fails_when_it_ends_wrongly_though_it_began_well() {
        assert_eq!(results("OK", "OK").failed().count(), 0);
        assert_eq!(results("NON-STRICT", "OK").failed().count(), 0);
        assert_eq!(results("INFORMATIONAL", "INFORMATIONAL").failed().count(), 0);
        for (behavior, close) in
            [("OK", "UNCLEAN"), ("OK", "WRONG CODE"), ("FAILED", "OK"), ("UNIMPLEMENTED", "OK")]
        {
            assert_eq!(results(behavior, close).failed().count(), 1, "{behavior} {close}");
        }
    }

    #[test]
    fn the_page_names_sections_and_cases() {
        let page = results("OK", "UNCLEAN").page();
        assert!(page.contains("| 1.1 | Text | 1 | 0 |"), "{page}");
        assert!(page.contains("| 1.1.2 | FAILED | UNCLEAN |"), "{page}");
    }
}
