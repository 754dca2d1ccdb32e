-- The three roles of a store, and their rights. Safe to repeat; run it as the owner of the schema `thorpolicy`, with
-- the right to create roles. `thorpolicy fleet init` runs it.
--
--   thorpolicy_owner    migrates, indexes, erases, drops old partitions: everything in the schema is its own
--   thorpolicy_writer   ships: calls four functions, and has no right on any table
--   thorpolicy_reader   reads every table and view but `private`, and writes nothing
--
-- No role can log in. Make a login for each device and person, and give it one of them:
--   CREATE ROLE thor_7 LOGIN PASSWORD '...' IN ROLE thorpolicy_writer;

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['thorpolicy_owner', 'thorpolicy_writer', 'thorpolicy_reader'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA thorpolicy TO thorpolicy_writer, thorpolicy_reader;
GRANT ALL ON SCHEMA thorpolicy TO thorpolicy_owner;

-- What a migration of somebody else made becomes the owner's, and so the functions that devices call have its rights,
-- not those of who made the store. Sequences and indexes go with their tables.
DO $$
DECLARE
    made text;
BEGIN
    IF NOT pg_has_role('thorpolicy_owner', 'USAGE') THEN
        GRANT thorpolicy_owner TO CURRENT_USER;
    END IF;
    FOR made IN
        SELECT format('TABLE %s', oid::regclass) FROM pg_class WHERE relnamespace = 'thorpolicy'::regnamespace
            AND relkind IN ('r', 'p', 'v') AND relowner <> 'thorpolicy_owner'::regrole
        UNION ALL
        SELECT format('FUNCTION %s', oid::regprocedure) FROM pg_proc WHERE pronamespace = 'thorpolicy'::regnamespace
            AND proowner <> 'thorpolicy_owner'::regrole
    LOOP
        EXECUTE format('ALTER %s OWNER TO thorpolicy_owner', made);
    END LOOP;
END $$;

-- PostgreSQL lets everybody call a new function.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA thorpolicy FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA thorpolicy FROM thorpolicy_writer, thorpolicy_reader;
GRANT EXECUTE ON FUNCTION position_of, report, receive, keep_checkpoint TO thorpolicy_writer;
GRANT EXECUTE ON FUNCTION agent_statistics TO thorpolicy_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA thorpolicy TO thorpolicy_reader;
REVOKE ALL ON private FROM thorpolicy_reader;
