//! Figures as a table for people and as one JSON object for machines.

use std::fmt::Write;

use serde::Serialize;

/// All figures of one benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) husk: Option<f64>,
    pub(crate) peer: Option<f64>,
    pub(crate) peer_name: Option<&'static str>,
    pub(crate) floor: Option<f64>,
    /// husk against the peer, or against the floor where there is no peer; above 1 when husk is better.
    pub(crate) ratio: Option<f64>,
}

impl Row {
    /// A figure of which less is better.
    pub(crate) fn less_is_better(
        name: impl Into<String>,
        unit: &'static str,
        husk: Option<f64>,
        peer: Option<(&'static str, f64)>,
        floor: Option<f64>,
    ) -> Self {
        let against = peer.map(|(_, figure)| figure).or(floor);
        let ratio = husk.zip(against).map(|(husk, against)| against / husk).filter(|ratio| ratio.is_finite());
        let (peer_name, peer) = peer.unzip();
        Self { name: name.into(), unit, husk, peer, peer_name, floor, ratio }
    }

    /// A figure of which more is better.
    pub(crate) fn more_is_better(
        name: impl Into<String>,
        unit: &'static str,
        husk: Option<f64>,
        peer: Option<(&'static str, f64)>,
        floor: Option<f64>,
    ) -> Self {
        let row = Self::less_is_better(name, unit, husk, peer, floor);
        Self { ratio: row.ratio.map(f64::recip), ..row }
    }
}

impl Report {
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("a report holds nothing that JSON cannot")
    }

    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        let mut line = |cells: [&str; 6]| {
            let [name, unit, husk, peer, floor, ratio] = cells;
            writeln!(table, "{name:28} {unit:>7} {husk:>11} {peer:>29} {floor:>11} {ratio:>7}")
                .expect("a String takes every write");
        };
        line(["figure", "unit", "husk", "peer", "floor", "ratio"]);
        let number = |figure: Option<f64>| figure.map_or("-".to_owned(), format_figure);
        for row in &self.rows {
            let peer = row.peer.map_or("-".to_owned(), |figure| {
                format!("{} {}", format_figure(figure), row.peer_name.unwrap_or_default())
            });
            line([&row.name, row.unit, &number(row.husk), &peer, &number(row.floor), &number(row.ratio)]);
        }
        table.push_str("\nratio: husk against the peer, else against the floor; above 1 when husk is better");
        table
    }
}

/// Three digits behind the point where they can mean something.
fn format_figure(figure: f64) -> String {
    if figure < 1000.0 { format!("{figure:.3}") } else { format!("{figure:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_against_the_peer_else_the_floor_and_above_one_when_husk_is_better() {
        let ratio = |husk, peer, floor| Row::less_is_better("x", "ms", husk, peer, floor).ratio;
        assert_eq!(ratio(Some(2.0), Some(("q", 4.0)), Some(1.0)), Some(2.0));
        assert_eq!(ratio(Some(2.0), None, Some(1.0)), Some(0.5));
        assert_eq!(ratio(None, Some(("q", 4.0)), Some(1.0)), None);
        assert_eq!(ratio(Some(2.0), None, None), None);
        assert_eq!(Row::more_is_better("x", "1/s", Some(2.0), Some(("q", 4.0)), None).ratio, Some(0.5));
    }
}
