//! Instructions of each step, as the bench `instructions` counts them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The figures that the bench is compared with: `bench/instructions.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instructions {
    /// What compiled it, as it calls itself: another compiler, other figures.
    pub compiler: String,
    /// By step, and what it is of: `fetch(64)`.
    pub steps: BTreeMap<String, Count>,
}

/// What a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// In all.
    pub instructions: u64,
    /// For so many commands; 0 if there is nothing to do.
    pub commands: u64,
}

/// How far a step may be from what it was.
const TOLERANCE_PERCENT: u64 = 3;

impl Instructions {
    /// Those of this version.
    pub fn committed() -> Option<Self> {
        serde_json::from_str(include_str!("../../instructions.json")).ok()
    }

    /// From what the bench prints with `--output-format=json`: an object for each step.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in a line.
    pub fn from_bench(compiler: String, printed: &str) -> Result<Self, String> {
        let objects = serde_json::Deserializer::from_str(printed).into_iter::<serde_json::Value>();
        let steps = objects.map(|object| {
            let object = object.map_err(|e| format!("the bench printed no JSON: {e}"))?;
            step(&object).ok_or_else(|| "the bench printed JSON of another version".to_string())
        });
        Ok(Self { compiler, steps: steps.collect::<Result<_, _>>()? })
    }

    /// What is different in a newer one: a line for each step that has grown or shrunk by more than 3 %, that is new, or that has gone.
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (step, now) in &new.steps {
            let now = now.instructions;
            match self.steps.get(step).map(|count| count.instructions) {
                None => changes.push(format!("{step}: {now} instructions, and no figure to compare with")),
                Some(before) => {
                    // In whole numbers: what has changed by just 3 % has not changed by more.
                    if 100 * now.abs_diff(before) > TOLERANCE_PERCENT * before {
                        let how = if now > before { "grew" } else { "shrank" };
                        let percent = 100.0 * (now as f64 / before as f64 - 1.0);
                        changes.push(format!(
                            "{step} {how} from {before} to {now} instructions: {percent:+.1} %"
                        ));
                    }
                }
            }
        }
        let gone = self.steps.keys().filter(|step| !new.steps.contains_key(*step));
        changes.extend(gone.map(|step| format!("{step} is not measured any more")));
        changes
    }
}

/// `"function_name": "fetch"`, `"description": "(fetching(64))"`, and the count of `Ir`.
fn step(object: &serde_json::Value) -> Option<(String, Count)> {
    let name = object.get("function_name")?.as_str()?;
    let of =
        object.get("description")?.as_str()?.trim_matches(['(', ')']).split_once('(')?.1.trim_matches('"');
    let counts = object.pointer("/profiles/0/data/parts/0/metrics/Ir/values/new")?;
    let n = of.parse::<u64>();
    let commands = match (name, n) {
        ("sweep_idle" | "guests_idle", _) => 0,
        // A TLBI and a CMD_SYNC each.
        ("way_guests" | "way_limit_pairs" | "way_engine_pairs", Ok(n)) => 2 * n,
        (_, Ok(n)) => n,
        (_, Err(_)) => 2000,
    };
    Some((format!("{name}({of})"), Count { instructions: counts.as_u64()?, commands }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"{"function_name": "fetch", "description": "(fetching(64))",
        "profiles": [{"data": {"parts": [{"metrics": {"Ir": {"values": {"new": 1000}}}}]}}]}
        {"function_name": "check_recorded", "description": "(checking_recorded(\"sev-noril-64k\"))",
        "profiles": [{"data": {"parts": [{"metrics": {"Ir": {"values": {"new": 20000, "old": 1}}}}]}}]}"#;

    fn of(figures: &[(&str, u64)]) -> Instructions {
        let count = |instructions| Count { instructions, commands: 64 };
        let steps = figures.iter().map(|(step, n)| (step.to_string(), count(*n)));
        Instructions { compiler: String::new(), steps: steps.collect() }
    }

    #[test]
    fn what_the_bench_prints_is_understood() {
        let read = Instructions::from_bench("rustc 1".into(), PRINTED).expect("it is as it should be");
        let expected = [
            ("check_recorded(sev-noril-64k)".to_string(), Count { instructions: 20_000, commands: 2000 }),
            ("fetch(64)".to_string(), Count { instructions: 1000, commands: 64 }),
        ];
        assert_eq!(read.steps.into_iter().collect::<Vec<_>>(), expected);
        assert!(Instructions::from_bench(String::new(), "{}").is_err());
        assert!(Instructions::from_bench(String::new(), "no").is_err());
    }

    #[test]
    fn what_has_grown_or_shrunk_by_more_than_three_percent_is_named() {
        let old = of(&[("a(2)", 1000), ("b(2)", 1000), ("c(2)", 1000), ("d(2)", 1000)]);
        let new = of(&[("a(2)", 1030), ("b(2)", 1031), ("c(2)", 969), ("e(2)", 7)]);
        let expected = [
            "b(2) grew from 1000 to 1031 instructions: +3.1 %",
            "c(2) shrank from 1000 to 969 instructions: -3.1 %",
            "e(2): 7 instructions, and no figure to compare with",
            "d(2) is not measured any more",
        ];
        assert_eq!(old.changes(&new), expected);
        assert!(old.changes(&old).is_empty());
    }

    #[test]
    fn the_committed_figures_can_be_read() {
        assert!(Instructions::committed().is_some_and(|figures| figures.steps.len() > 20));
    }
}
