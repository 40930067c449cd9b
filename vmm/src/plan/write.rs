//! A placement put into the text of a configuration file: the nodes of `husk.placement.memory` and, where a VM is split,
//! of `husk.placement.numa`, and the CPUs of `husk.placement.threads`. All else of the text stays byte for byte, keys that husk does not know included.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::report::{Part, VmPlan};
use crate::host::IdList;

/// A text that takes no placement.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Not a JSON object.
    #[error("cannot be read as a JSON object")]
    Json(#[from] serde_json::Error),
    /// A key that holds something else than an object.
    #[error("{key}: is no object: remove it")]
    NotAnObject {
        /// The key, from the top.
        key: &'static str,
    },
}

/// The text with the placement of `vm` in it.
///
/// # Errors
/// The text is no JSON object, or what is at the placement's place is none.
pub fn with_placement(text: &str, vm: &VmPlan) -> Result<String, WriteError> {
    let Some(husk) = member(text, text, "husk")? else {
        let husk = json!({ "placement": placement(None, vm)? });
        return Ok(insert(text, 0..text.len(), "husk", &husk));
    };
    let section = &text[husk.clone()];
    if section.trim() == "null" {
        return Ok(replace(text, husk, &json!({ "placement": placement(None, vm)? })));
    }
    if !section.starts_with('{') {
        return Err(WriteError::NotAnObject { key: "husk" });
    }
    match member(text, section, "placement")? {
        None => Ok(insert(text, husk, "placement", &placement(None, vm)?)),
        Some(range) => {
            let old = serde_json::from_str(&text[range.clone()])?;
            let new = placement(Some(old), vm)?;
            Ok(replace(text, range, &new))
        }
    }
}

/// The section, over the one that was there: priorities and all that a plan says nothing of stay.
fn placement(old: Option<Value>, vm: &VmPlan) -> Result<Value, WriteError> {
    let mut placement = object(old, "husk.placement")?;
    let mut memory = object(placement.remove("memory"), "husk.placement.memory")?;
    bind(&mut memory, &vm.parts.iter().map(|part| part.node).collect());
    if let Some(guest_nodes) = placement.get_mut("numa").and_then(Value::as_array_mut) {
        let split = guest_nodes.len() == vm.parts.len() && vm.parts.len() > 1;
        for (index, node) in guest_nodes.iter_mut().enumerate() {
            let Value::Object(node) = node else { return Err(WriteError::NotAnObject { key: "husk.placement.numa" }) };
            match vm.parts.get(index).filter(|_| split) {
                Some(part) => bind(node, &[part.node].into_iter().collect()),
                // A VM that is whole is where all of its memory is.
                None => ["nodes", "policy"].iter().for_each(|key| drop(node.remove(*key))),
            }
        }
    }
    placement.insert("memory".to_owned(), Value::Object(memory));

    let mut threads = object(placement.remove("threads"), "husk.placement.threads")?;
    let planned = |name: &str| name.starts_with("vcpu") || name == "io" || name.starts_with("io:");
    for (_, terms) in threads.iter_mut().filter(|(name, _)| planned(name)) {
        terms.as_object_mut().map(|terms| terms.remove("cpus"));
    }
    let mut place = |name: String, cpus: &IdList| -> Result<(), WriteError> {
        let mut terms = object(threads.remove(&name), "husk.placement.threads")?;
        terms.insert("cpus".to_owned(), json!(cpus));
        threads.insert(name, Value::Object(terms));
        Ok(())
    };
    let vcpus = vm.parts.iter().flat_map(|part: &Part| part.vcpus.iter().zip(&part.cpus));
    for (vcpu, &cpu) in vcpus {
        place(format!("vcpu{vcpu}"), &[cpu].into_iter().collect())?;
    }
    place("io".to_owned(), &vm.io_cpus)?;
    threads.retain(|_, terms| terms.as_object().is_none_or(|terms| !terms.is_empty()));
    placement.insert("threads".to_owned(), Value::Object(threads));
    Ok(Value::Object(placement))
}

fn bind(memory: &mut Map<String, Value>, nodes: &IdList) {
    memory.insert("nodes".to_owned(), json!(nodes));
    memory.insert("policy".to_owned(), json!("bind"));
}

fn object(value: Option<Value>, key: &'static str) -> Result<Map<String, Value>, WriteError> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object),
        Some(_) => Err(WriteError::NotAnObject { key }),
    }
}

/// Where the value of a key of `object`, which is a part of `text`, stands in `text`.
fn member(text: &str, object: &str, key: &str) -> Result<Option<Range<usize>>, WriteError> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(object)?;
    Ok(members.get(key).map(|value| {
        let value = value.get();
        let start = value.as_ptr().addr() - text.as_ptr().addr();
        start..start + value.len()
    }))
}

fn replace(text: &str, range: Range<usize>, value: &Value) -> String {
    format!("{}{}{}", &text[..range.start], pretty(value, indent_at(text, range.start)), &text[range.end..])
}

/// Puts a key behind the others of the object at `range`.
fn insert(text: &str, range: Range<usize>, key: &str, value: &Value) -> String {
    let object = &text[range.clone()];
    let close = range.start + object.rfind('}').expect("an object that was read ends in a brace");
    let before = text[..close].trim_end();
    let comma = if before.ends_with('{') { "" } else { "," };
    let outer = indent_at(text, range.start);
    let inner = format!("{outer}  ");
    let value = pretty(value, &inner);
    format!("{before}{comma}\n{inner}\"{key}\": {value}\n{outer}{}", &text[close..])
}

/// The space at the start of the line on which `position` is.
fn indent_at(text: &str, position: usize) -> &str {
    let line = text[..position].rfind('\n').map_or(0, |end| end + 1);
    let indent = text[line..].len() - text[line..].trim_start_matches([' ', '\t']).len();
    &text[line..line + indent]
}

/// Lines behind the first start at `indent`.
fn pretty(value: &Value, indent: &str) -> String {
    format!("{value:#}").replace('\n', &format!("\n{indent}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(node: u16, vcpus: &str, cpus: &[u16]) -> Part {
        let vcpus = vcpus.parse().unwrap();
        Part { node, vcpus, cpus: cpus.to_vec(), memory_bytes: 1 << 30, page_bytes: None, pages: 0 }
    }

    fn plan() -> VmPlan {
        VmPlan {
            vm: "a".to_owned(),
            parts: vec![part(1, "0-1", &[4, 5])],
            io_cpus: "0-3".parse().unwrap(),
            cpu_time: Some(1.0),
            may_grow_bytes: 0,
            misses: Vec::new(),
        }
    }

    fn written(text: &str) -> (String, Value) {
        let text = with_placement(text, &plan()).unwrap();
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }

    #[test]
    fn a_file_without_a_placement_gets_one_behind_its_own_keys() {
        let (text, value) = written("{\n  \"zeta\": {\"b\": 1,  \"a\": 1.50},\n  \"boot-source\": 2\n}\n");
        assert!(
            text.starts_with("{\n  \"zeta\": {\"b\": 1,  \"a\": 1.50},\n  \"boot-source\": 2,\n  \"husk\": {\n"),
            "{text}"
        );
        assert!(text.ends_with("    }\n  }\n}\n"), "{text}");
        let placement = &value["husk"]["placement"];
        assert_eq!(placement["memory"], json!({ "nodes": "1", "policy": "bind" }));
        assert_eq!(
            placement["threads"],
            json!({ "vcpu0": { "cpus": "4" }, "vcpu1": { "cpus": "5" }, "io": { "cpus": "0-3" } })
        );
        assert_eq!(written("{}").1["husk"]["placement"], *placement);
        assert_eq!(written("{\"husk\": null, \"x\": []}").1["husk"]["placement"], *placement);
        assert_eq!(written("{\"husk\": {}}").1["husk"]["placement"], *placement);
        assert_eq!(written("{\"husk\": {\"y\": \"}\"}}").1["husk"], json!({ "y": "}", "placement": placement }));
    }

    #[test]
    fn a_placement_that_is_there_keeps_what_a_plan_does_not_say() {
        let (text, value) = written(
            r#"{"husk": {"placement": {"memory": {"pages": "2M", "nodes": "0"}, "best_effort": true,
                "threads": {"vcpu": {"cpus": "9"}, "vcpu0": {"cpus": "7", "priority": "fifo:1"}, "io:root": {"cpus": "8"}, "main": {"cpus": "1"}, "api": {"cpus": "1", "priority": "nice:5"}}}},
                "drives": []}"#,
        );
        assert!(text.ends_with("\"drives\": []}"), "{text}");
        let placement = &value["husk"]["placement"];
        assert_eq!(placement["memory"], json!({ "pages": "2M", "nodes": "1", "policy": "bind" }));
        assert_eq!(placement["best_effort"], true);
        assert_eq!(
            placement["threads"],
            json!({
                "vcpu0": { "cpus": "4", "priority": "fifo:1" }, "vcpu1": { "cpus": "5" },
                "main": { "cpus": "1" }, "api": { "cpus": "1", "priority": "nice:5" }, "io": { "cpus": "0-3" },
            })
        );
    }

    #[test]
    fn a_vm_that_is_split_has_its_nodes_bound_each_and_one_that_is_whole_has_none() {
        let text = r#"{"husk": {"placement": {"numa": [
            {"cpus": "0,2", "mem_size_mib": 512, "nodes": "7", "policy": "interleave"}, {"cpus": "1", "mem_size_mib": 512}]}}}"#;
        let split = VmPlan { parts: vec![part(2, "0,2", &[8, 9]), part(3, "1", &[12])], ..plan() };
        let value: Value = serde_json::from_str(&with_placement(text, &split).unwrap()).unwrap();
        let placement = &value["husk"]["placement"];
        assert_eq!(placement["memory"]["nodes"], "2-3");
        assert_eq!(
            placement["numa"],
            json!([
                { "cpus": "0,2", "mem_size_mib": 512, "nodes": "2", "policy": "bind" },
                { "cpus": "1", "mem_size_mib": 512, "nodes": "3", "policy": "bind" },
            ])
        );
        let cpus = ["vcpu0", "vcpu1", "vcpu2"].map(|name| placement["threads"][name]["cpus"].clone());
        assert_eq!(cpus, ["8", "12", "9"]);
        let whole = written(text).1["husk"]["placement"].clone();
        assert_eq!(whole["memory"]["nodes"], "1");
        assert_eq!(whole["numa"][0], json!({ "cpus": "0,2", "mem_size_mib": 512 }));
    }

    #[test]
    fn writing_twice_changes_nothing_more() {
        let (once, _) = written("{\n  \"husk\": {\n    \"other\": 1\n  }\n}\n");
        assert_eq!(written(&once).0, once);
    }

    #[test]
    fn what_takes_no_placement_is_named() {
        let refused = |text| with_placement(text, &plan()).unwrap_err().to_string();
        assert_eq!(refused("[]"), "cannot be read as a JSON object");
        assert_eq!(refused(r#"{"husk": 1}"#), "husk: is no object: remove it");
        assert_eq!(
            refused(r#"{"husk": {"placement": {"threads": []}}}"#),
            "husk.placement.threads: is no object: remove it"
        );
    }
}
