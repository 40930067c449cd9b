//! Medians and percentiles.

/// The median of some figures; `None` of none.
pub(crate) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let upper = *figures.get(figures.len() / 2)?;
    let lower = figures[(figures.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// What so many of a hundred figures do not exceed; `None` of none.
pub(crate) fn percentile(mut figures: Vec<f64>, of_hundred: usize) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let reached = (figures.len() * of_hundred).div_ceil(100);
    figures.get(reached.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::{median, percentile};

    #[test]
    fn a_percentile_is_a_figure_that_so_many_do_not_exceed() {
        let figures: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(vec![], 99), None);
        assert_eq!(percentile(vec![7.0], 99), Some(7.0));
        assert_eq!(percentile(figures.clone(), 99), Some(198.0));
        assert_eq!(percentile(figures, 100), Some(200.0));
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_middles() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
