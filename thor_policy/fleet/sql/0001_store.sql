-- The store of a fleet: who ships, the chains as they were recorded, and beside them what may be erased.
--
-- `events` holds the stored bytes of each event, partitioned by the month in which the store received it: a device
-- states `at`, but only the store's own clock chooses the partition. Private parts with their salts are in a table
-- of their own, so that an erasure deletes rows there and the chain stays whole.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE devices (
    device     text PRIMARY KEY CHECK (device ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
    role       name NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen  timestamptz NOT NULL DEFAULT now(),
    alarms     integer NOT NULL DEFAULT 0
);
COMMENT ON COLUMN devices.role IS 'The login role that may ship for the device: the first that did.';

CREATE TABLE journals (
    journal    integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device     text NOT NULL REFERENCES devices,
    chain      bytea NOT NULL CHECK (octet_length(chain) = 32),
    seq        bigint NOT NULL DEFAULT 0,
    head       bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    newest_at  text,
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (device, chain)
);
COMMENT ON COLUMN journals.chain IS 'The hash of event 1, which names the journal.';
COMMENT ON COLUMN journals.head IS 'The hash of event `seq`, the newest that was received.';

CREATE TABLE events (
    journal        integer NOT NULL,
    seq            bigint NOT NULL,
    received_at    timestamptz NOT NULL,
    at             text NOT NULL,
    boot_id        text NOT NULL,
    mono_ns        bigint NOT NULL,
    kind           text NOT NULL,
    subject_id     bytea NOT NULL,
    body           bytea NOT NULL,
    private_digest bytea NOT NULL,
    prev_hash      bytea NOT NULL,
    hash           bytea NOT NULL,
    PRIMARY KEY (journal, seq, received_at)
) PARTITION BY RANGE (received_at);

CREATE TABLE private (
    journal integer NOT NULL,
    seq     bigint NOT NULL,
    salt    bytea NOT NULL,
    value   bytea NOT NULL,
    PRIMARY KEY (journal, seq)
);

CREATE TABLE erasures (
    journal integer NOT NULL,
    seq     bigint NOT NULL,
    by_seq  bigint NOT NULL,
    digest  bytea NOT NULL,
    PRIMARY KEY (journal, seq, by_seq)
);

CREATE TABLE checkpoints (
    journal   integer NOT NULL REFERENCES journals,
    seq       bigint NOT NULL,
    head      bytea NOT NULL,
    at        text NOT NULL,
    key       text NOT NULL,
    signature text NOT NULL,
    PRIMARY KEY (journal, seq, key)
);

CREATE TABLE alarms (
    alarm    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    device   text NOT NULL REFERENCES devices,
    chain    bytea NOT NULL,
    kind     text NOT NULL,
    seq      bigint NOT NULL,
    stored   bytea,
    received bytea,
    times    integer NOT NULL DEFAULT 1,
    UNIQUE NULLS NOT DISTINCT (device, chain, kind, seq, received)
);
COMMENT ON COLUMN alarms.kind IS
    'fork: another event has this number; broken: a hash or digest is wrong; new_journal: the device began another '
    'chain; rolled_back: the device has fewer events than it shipped; checkpoint: it signs another hash';

-- Events whose rows the tables below lack, because a value did not fit: the chain has them all the same.
CREATE TABLE without_rows (
    journal   integer NOT NULL,
    first_seq bigint NOT NULL,
    last_seq  bigint NOT NULL,
    reason    text NOT NULL,
    PRIMARY KEY (journal, first_seq)
);

-- The tables that people query, with the columns of the device's own.

CREATE TABLE decisions (
    journal            integer NOT NULL,
    seq                bigint NOT NULL,
    decision_id        text NOT NULL,
    timestamp          timestamptz NOT NULL,
    situation          jsonb,
    team_context       text,
    model_name         text,
    model_version      text,
    prompt_version     text,
    decision           text NOT NULL,
    classification     text,
    risk_level         text,
    reasoning          text,
    full_response      text,
    expected_decision  text,
    decision_correct   boolean,
    reasoning_coverage double precision,
    reviewed           boolean NOT NULL,
    review_decision    text,
    review_reasoning   text,
    review_timestamp   timestamptz,
    scenario_id        text,
    tags               jsonb NOT NULL,
    decision_type      text NOT NULL,
    actor              text,
    action             text,
    entity             text,
    session            text,
    allow              boolean,
    tier               text NOT NULL,
    reason_code        text,
    floor              text,
    label              text,
    confidence         double precision,
    probabilities      jsonb NOT NULL,
    clauses            jsonb NOT NULL,
    is_exception       boolean NOT NULL,
    input_tokens       bigint,
    output_tokens      bigint,
    caller_uid         bigint,
    queue_ms           double precision,
    rules_ms           double precision,
    score_ms           double precision,
    explain_ms         double precision,
    latency_ms         double precision,
    outcome_status     text,
    outcome_value      double precision,
    original_id        text,
    temperature        double precision,
    explained_seq      bigint,
    reviewed_seq       bigint,
    outcome_seq        bigint,
    claimed            text,
    timestamp_decision timestamptz,
    confidence_level   text,
    urgency            text,
    judgment_call      boolean,
    required           jsonb,
    lacks              jsonb,
    trace_status       text NOT NULL,
    status_seq         bigint,
    approval_task      text,
    lifted             text,
    PRIMARY KEY (journal, decision_id)
);
CREATE UNIQUE INDEX decisions_seq ON decisions (journal, seq);
CREATE INDEX decisions_timestamp ON decisions (timestamp);
CREATE INDEX decisions_unreviewed ON decisions (timestamp) WHERE NOT reviewed;
CREATE INDEX decisions_correct ON decisions (decision_correct, timestamp) WHERE decision_correct IS NOT NULL;
CREATE INDEX decisions_actor ON decisions (actor, timestamp);
CREATE INDEX decisions_exceptions ON decisions (timestamp) WHERE is_exception;
CREATE INDEX decisions_explained ON decisions (journal, explained_seq) WHERE explained_seq IS NOT NULL;
CREATE INDEX decisions_reviewed ON decisions (journal, reviewed_seq) WHERE reviewed_seq IS NOT NULL;
CREATE INDEX decisions_task ON decisions (journal, approval_task) WHERE approval_task IS NOT NULL;

CREATE TABLE reviews (
    journal      integer NOT NULL,
    seq          bigint NOT NULL,
    timestamp    timestamptz NOT NULL,
    id           text NOT NULL,
    decision_id  text NOT NULL,
    reviewer     text,
    verdict      text NOT NULL,
    decision     text,
    reasoning    text,
    caller_uid   bigint,
    blind        boolean,
    adjudicates  boolean,
    sampled      boolean,
    withdraws    text,
    PRIMARY KEY (journal, seq)
);
CREATE INDEX reviews_decision ON reviews (journal, decision_id);

CREATE TABLE outcomes (
    journal     integer NOT NULL,
    seq         bigint NOT NULL,
    timestamp   timestamptz NOT NULL,
    id          text NOT NULL,
    decision_id text NOT NULL,
    status      text NOT NULL,
    value       double precision,
    note        text,
    caller_uid  bigint,
    claimed     text,
    PRIMARY KEY (journal, seq)
);
CREATE INDEX outcomes_decision ON outcomes (journal, decision_id);

CREATE TABLE approvals (
    journal     integer NOT NULL,
    seq         bigint NOT NULL,
    timestamp   timestamptz NOT NULL,
    id          text NOT NULL,
    decision_id text NOT NULL,
    approver    text,
    role        text,
    channel     text,
    verdict     text NOT NULL,
    step        integer NOT NULL,
    evidence    text,
    caller_uid  bigint,
    task        text,
    roles       jsonb,
    groups      jsonb,
    parties     jsonb,
    recorded_by text,
    comment     text,
    PRIMARY KEY (journal, seq)
);
CREATE INDEX approvals_decision ON approvals (journal, decision_id);
CREATE INDEX approvals_task ON approvals (journal, task) WHERE task IS NOT NULL;

CREATE TABLE trace_states (
    journal     integer NOT NULL,
    seq         bigint NOT NULL,
    timestamp   timestamptz NOT NULL,
    id          text NOT NULL,
    decision_id text NOT NULL,
    status      text NOT NULL,
    by          text,
    because     text,
    caller_uid  bigint,
    PRIMARY KEY (journal, seq)
);
CREATE INDEX trace_states_decision ON trace_states (journal, decision_id);

CREATE TABLE edges (
    journal    integer NOT NULL,
    seq        bigint NOT NULL,
    timestamp  timestamptz NOT NULL,
    id         text NOT NULL,
    source     text NOT NULL,
    target     text NOT NULL,
    type       text NOT NULL,
    weight     double precision,
    rationale  text,
    caller_uid bigint,
    similarity double precision,
    how        text,
    favourable boolean,
    PRIMARY KEY (journal, seq)
);
CREATE INDEX edges_source ON edges (journal, source);
CREATE INDEX edges_target ON edges (target);

-- A short text of a decision and its vector, which `thorpolicy fleet index` makes: null until then.
CREATE TABLE summaries (
    journal   integer NOT NULL,
    seq       bigint NOT NULL,
    text      text NOT NULL,
    embedding vector(384),
    PRIMARY KEY (journal, seq)
);
CREATE INDEX summaries_embedding ON summaries USING hnsw (embedding vector_cosine_ops)
    WITH (m = 16, ef_construction = 64);
