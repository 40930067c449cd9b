//! husk's metrics as JSON, from the text that Prometheus reads (text format 0.0.4).

use serde_json::{Map, Value, json};

/// Every sample of a page, in order: `{"name", "labels", "value"}`.
pub(super) fn samples(page: &str) -> Value {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Value> {
    let (series, value) = line.rsplit_once(' ')?;
    let value: Value = serde_json::from_str(value).ok()?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    Some(json!({ "name": name, "labels": label_values(labels), "value": value }))
}

/// `a="b",c="d"}`, of which a value may have a quote, a backslash or a line's end behind a backslash.
fn label_values(text: &str) -> Map<String, Value> {
    let mut labels = Map::new();
    let mut rest = text;
    while let Some((name, quoted)) = rest.split_once("=\"") {
        let (mut value, mut letters) = (String::new(), quoted.chars());
        loop {
            match letters.next() {
                Some('\\') => value.extend(letters.next().map(|letter| if letter == 'n' { '\n' } else { letter })),
                Some('"') | None => break,
                Some(letter) => value.push(letter),
            }
        }
        labels.insert(name.trim_start_matches(',').to_owned(), value.into());
        rest = letters.as_str();
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_name_its_labels_and_its_value() {
        let page = "# HELP a A.\n# TYPE a counter\na 1\nb{x=\"1\",y=\"q\\\"u=\\\\o\\nte},{\"} 0.25\nc{} 18446744073709551615\n";
        assert_eq!(
            samples(page),
            json!([
                { "name": "a", "labels": {}, "value": 1 },
                { "name": "b", "labels": { "x": "1", "y": "q\"u=\\o\nte},{" }, "value": 0.25 },
                { "name": "c", "labels": {}, "value": u64::MAX },
            ])
        );
    }
}
