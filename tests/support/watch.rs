//! Sees what is logged and counted on this thread: all of it, in a runtime that has one.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

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
    pub over: bool,
}

#[derive(Clone, Debug)]
pub struct Line {
    pub level: Level,
    pub target: String,
    pub message: String,
    pub fields: Fields,
    /// The span that it is in.
    pub span: Option<u64>,
}

impl Line {
    pub fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field).map(|value| value.parse().unwrap())
    }
}

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Logged>>);

#[derive(Default)]
struct Logged {
    spans: Vec<Span>,
    lines: Vec<Line>,
}

impl Log {
    /// Begins to watch, until the guard is dropped.
    pub fn begin() -> (Self, DefaultGuard) {
        // What a thread sees is cached for all of them, and a thread that watches nothing would have it that nobody
        // does.
        static EVERYTHING: Once = Once::new();
        EVERYTHING.call_once(|| tracing::subscriber::set_global_default(Registry::default()).unwrap());
        let log = Self::default();
        let guard = tracing::subscriber::set_default(Registry::default().with(log.clone()));
        (log, guard)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().spans.clone()
    }

    /// All lines so far, of this crate or of the tests.
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap().lines.clone()
    }

    pub fn lines_with(&self, message: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.message == message).collect()
    }

    fn update(&self, id: &Id, update: impl FnOnce(&mut Span)) {
        let id = id.into_u64();
        // Ids are used again once a span is over.
        if let Some(span) = self.0.lock().unwrap().spans.iter_mut().find(|span| span.id == id && !span.over) {
            update(span);
        }
    }
}

fn is_watched(target: &str) -> bool {
    target == "tower_challenge" || target.starts_with("observe")
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
            over: false,
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
        self.0.lock().unwrap().lines.push(Line {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            message: fields.remove("message").unwrap_or_default(),
            fields,
            span: context.event_span(event).map(|span| span.id().into_u64()),
        });
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.update(&id, |span| span.over = true);
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

/// What has been counted. A snapshot empties the recorder, so that they are added up here.
pub struct Meter {
    snapshots: Snapshotter,
    numbers: BTreeMap<String, i64>,
    durations: BTreeMap<String, Vec<f64>>,
}

impl Meter {
    pub fn new(recorder: &DebuggingRecorder) -> Self {
        Self { snapshots: recorder.snapshotter(), numbers: BTreeMap::new(), durations: BTreeMap::new() }
    }

    fn look(&mut self) {
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

    /// A gauge without labels, or a counter.
    pub fn number(&mut self, name: &str) -> Option<i64> {
        self.look();
        self.numbers.get(&format!("{name}[]")).copied()
    }

    /// All series of a counter, by their labels.
    pub fn numbers(&mut self, name: &str) -> BTreeMap<String, i64> {
        self.look();
        let name = format!("{name}[");
        let of_it = self.numbers.iter().filter(|(series, value)| series.starts_with(&name) && **value != 0);
        of_it.map(|(series, &value)| (series[name.len()..].trim_end_matches(']').to_owned(), value)).collect()
    }

    /// The values of the histogram, by the labels.
    pub fn durations(&mut self, labels: &str) -> Vec<f64> {
        self.look();
        let series = format!("challenge_handshake_duration_seconds[{labels}]");
        self.durations.get(&series).cloned().unwrap_or_default()
    }

    /// Every series that there is, by name and labels.
    pub fn series(&mut self) -> Vec<String> {
        self.look();
        self.numbers.keys().chain(self.durations.keys()).cloned().collect()
    }
}
