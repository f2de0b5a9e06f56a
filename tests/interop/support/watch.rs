//! Captures the spans, events and metrics of the current thread: all of them, in a runtime with one thread.
#![allow(dead_code, unreachable_pub, reason = "not every test uses all of it")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, Once};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

pub type Fields = BTreeMap<&'static str, String>;

#[derive(Clone, Debug)]
pub struct Span {
    pub id: u64,
    pub name: &'static str,
    pub level: Level,
    pub target: &'static str,
    pub parent: Option<u64>,
    pub fields: Fields,
    pub closed: bool,
}

impl Span {
    fn role(&self) -> Option<&str> {
        self.fields.get("challenge.role").map(String::as_str)
    }
}

#[derive(Clone, Debug)]
pub struct LogEvent {
    pub level: Level,
    pub target: String,
    pub message: String,
    pub fields: Fields,
    /// The id of the current span.
    pub span: Option<u64>,
    /// The role of the current span, `server` or `client`.
    pub role: Option<String>,
}

impl LogEvent {
    pub fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field).map(|value| value.parse().unwrap())
    }
}

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Logged>>);

#[derive(Default)]
struct Logged {
    spans: Vec<Span>,
    events: Vec<LogEvent>,
}

impl Log {
    /// Starts to capture, until the guard is dropped.
    pub fn start() -> (Self, DefaultGuard) {
        // tracing caches for each callsite whether any subscriber is interested, for all threads together. A global
        // subscriber that is interested in everything prevents a cached "never".
        static INTERESTED: Once = Once::new();
        INTERESTED.call_once(|| tracing::subscriber::set_global_default(Registry::default()).unwrap());
        let log = Self::default();
        let guard = tracing::subscriber::set_default(Registry::default().with(log.clone()));
        (log, guard)
    }

    /// Returns all spans so far that come from the library or from the tests.
    pub fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().spans.clone()
    }

    /// Returns all spans except those of handshakes on the client's side.
    pub fn server_spans(&self) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.role() != Some("client")).collect()
    }

    /// Returns all events so far that come from the library or from the tests.
    pub fn events(&self) -> Vec<LogEvent> {
        self.0.lock().unwrap().events.clone()
    }

    /// Returns all events except those in spans of the client's side.
    pub fn server_events(&self) -> Vec<LogEvent> {
        self.events().into_iter().filter(|event| event.role.as_deref() != Some("client")).collect()
    }

    /// Returns the [`server_events`](Self::server_events) with this message.
    pub fn server_events_with(&self, message: &str) -> Vec<LogEvent> {
        self.server_events().into_iter().filter(|event| event.message == message).collect()
    }

    pub fn events_with(&self, message: &str) -> Vec<LogEvent> {
        self.events().into_iter().filter(|event| event.message == message).collect()
    }

    fn update(&self, id: &Id, update: impl FnOnce(&mut Span)) {
        let id = id.into_u64();
        // The id of a closed span is reused.
        if let Some(span) = self.0.lock().unwrap().spans.iter_mut().find(|span| span.id == id && !span.closed)
        {
            update(span);
        }
    }
}

fn is_watched(target: &str) -> bool {
    target == "tower_challenge" || target == "interop::observe"
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        if !is_watched(metadata.target()) {
            return;
        }
        let mut fields = Fields::new();
        attributes.record(&mut Text(&mut fields));
        self.0.lock().unwrap().spans.push(Span {
            id: id.into_u64(),
            name: metadata.name(),
            level: *metadata.level(),
            target: metadata.target(),
            parent: context.span(id).and_then(|span| span.parent()).map(|parent| parent.id().into_u64()),
            fields,
            closed: false,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.update(id, |span| values.record(&mut Text(&mut span.fields)));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        if !is_watched(metadata.target()) {
            return;
        }
        let mut fields = Fields::new();
        event.record(&mut Text(&mut fields));
        let span = context.event_span(event).map(|span| span.id().into_u64());
        let mut logged = self.0.lock().unwrap();
        let current = logged.spans.iter().find(|open| !open.closed && Some(open.id) == span);
        let role = current.and_then(Span::role).map(str::to_owned);
        logged.events.push(LogEvent {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            message: fields.remove("message").unwrap_or_default(),
            fields,
            span,
            role,
        });
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.update(&id, |span| span.closed = true);
    }
}

struct Text<'a>(&'a mut Fields);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

/// The recorded metrics. A snapshot resets the recorder, so the values are added up here.
pub struct Meter {
    snapshots: Snapshotter,
    numbers: BTreeMap<String, i64>,
    durations: BTreeMap<String, Vec<f64>>,
}

impl Meter {
    pub fn new(recorder: &DebuggingRecorder) -> Self {
        Self { snapshots: recorder.snapshotter(), numbers: BTreeMap::new(), durations: BTreeMap::new() }
    }

    fn update(&mut self) {
        for (key, _, _, value) in self.snapshots.snapshot().into_vec() {
            let labels = key.key().labels().map(|label| format!("{}={}", label.key(), label.value()));
            let series = format!("{}{:?}", key.key().name(), labels.collect::<Vec<_>>()).replace('"', "");
            match value {
                DebugValue::Counter(count) => {
                    *self.numbers.entry(series).or_default() += i64::try_from(count).unwrap();
                }
                DebugValue::Gauge(change) => {
                    *self.numbers.entry(series).or_default() += format!("{change}").parse::<i64>().unwrap();
                }
                DebugValue::Histogram(values) => {
                    self.durations.entry(series).or_default().extend(values.iter().map(|value| **value));
                }
            }
        }
    }

    /// Returns a gauge or counter that has no labels.
    pub fn number(&mut self, name: &str) -> Option<i64> {
        self.update();
        self.numbers.get(&format!("{name}[]")).copied()
    }

    /// Returns all series of a counter by their labels, except those that are zero.
    pub fn numbers(&mut self, name: &str) -> BTreeMap<String, i64> {
        self.update();
        let name = format!("{name}[");
        let series = self.numbers.iter().filter(|(series, value)| series.starts_with(&name) && **value != 0);
        series
            .map(|(series, &value)| (series[name.len()..].trim_end_matches(']').to_owned(), value))
            .collect()
    }

    /// Returns the counts of handshakes of this role, by their other labels.
    pub fn handshakes(&mut self, role: &str) -> BTreeMap<String, i64> {
        let prefix = format!("role={role}, ");
        let all = self.numbers("challenge_handshakes_total");
        all.iter().filter_map(|(labels, &n)| Some((labels.strip_prefix(&prefix)?.to_owned(), n))).collect()
    }

    /// Returns the values of the histogram of durations with these labels.
    pub fn durations(&mut self, labels: &str) -> Vec<f64> {
        self.update();
        let series = format!("challenge_handshake_duration_seconds[{labels}]");
        self.durations.get(&series).cloned().unwrap_or_default()
    }

    /// Returns all series by name and labels.
    pub fn series(&mut self) -> Vec<String> {
        self.update();
        self.numbers.keys().chain(self.durations.keys()).cloned().collect()
    }
}
