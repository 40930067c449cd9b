//! How long requests took, route by route.

use std::time::Duration;

use vmm::metrics::{Latency, RouteFigures};

use super::routes;

/// A histogram for each route, in the order of their table, and one for requests that found none.
#[derive(Debug)]
pub(crate) struct RouteLatencies {
    routes: Vec<Latency>,
    none: Latency,
}

impl Default for RouteLatencies {
    fn default() -> Self {
        Self { routes: routes::all().iter().map(|_| Latency::default()).collect(), none: Latency::default() }
    }
}

impl RouteLatencies {
    /// Counts a request of the route with this place in the table.
    pub(super) fn add(&self, route: Option<usize>, took: Duration) {
        route.and_then(|index| self.routes.get(index)).unwrap_or(&self.none).add(took);
    }

    /// Those of the routes that were used.
    pub(super) fn read(&self) -> Vec<RouteFigures> {
        let figures = |method: &str, route, latency: &Latency| RouteFigures {
            method: method.to_owned(),
            route,
            latency: latency.read(),
        };
        let routes = routes::all().iter().zip(&self.routes);
        let routes = routes.map(|(route, latency)| figures(route.method.as_str(), route.path, latency));
        let all = routes.chain([figures("any", "none", &self.none)]);
        all.filter(|figures| figures.latency.count() > 0).collect()
    }
}
