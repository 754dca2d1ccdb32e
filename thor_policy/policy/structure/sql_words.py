"""What the words of SQL mean to `structure.sql`.

Owns the lists: kinds by first word, words of changes, and which functions, pragmas and tables are harmless.
Invariant: words are in upper case; functions, tables and columns in lower case. Data only; any thread.
"""

from __future__ import annotations

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


#: The kind of a statement by its first word; others are `other`.
KINDS = {
    **dict.fromkeys(("SELECT", "VALUES", "SHOW"), "read"),
    **dict.fromkeys(("INSERT", "REPLACE", "UPSERT"), "insert"),
    **dict.fromkeys(("UPDATE", "MERGE"), "update"),
    "DELETE": "delete",
    "CREATE": "create",
    "DROP": "drop",
    **dict.fromkeys(("ALTER", "RENAME", "COMMENT"), "alter"),
    "TRUNCATE": "truncate",
    **dict.fromkeys(("GRANT", "REVOKE", "DENY", "REASSIGN"), "grant"),
    **dict.fromkeys(
        ("BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "ABORT", "END", "SAVE"),
        "transaction",
    ),
    **dict.fromkeys(("SET", "RESET", "USE", "PRAGMA", "DECLARE", "DISCARD"), "set"),
    **dict.fromkeys(("CALL", "EXEC", "EXECUTE", "DO", "PREPARE"), "call"),
    **dict.fromkeys(("COPY", "BULK", "BACKUP", "RESTORE", "UNLOAD"), "copy"),
    **dict.fromkeys(("LOAD", "ATTACH", "DETACH", "INSTALL"), "load"),
}
#: Kinds that count wherever their word is in a statement, and words before it that make it another thing.
ANYWHERE = {
    "INSERT": "insert",
    "UPDATE": "update",
    "DELETE": "delete",
    "MERGE": "update",
    "DROP": "drop",
    "ALTER": "alter",
    "CREATE": "create",
    "TRUNCATE": "truncate",
    "EXEC": "call",
    "EXECUTE": "call",
}
NO_KIND_AFTER = frozenset({"ON", "FOR", "KEY", "BEFORE", "AFTER", "OF", "OR"})
#: What may stand between EXPLAIN and the statement, besides options in brackets.
EXPLAIN = frozenset({"EXPLAIN", "DESCRIBE", "DESC"})
EXPLAIN_OPTIONS = frozenset({"ANALYZE", "ANALYSE", "VERBOSE", "EXTENDED", "QUERY", "PLAN"})
#: Words that no statement has that only reads: targets, locks, and what begins a statement of T-SQL, also
#: in the middle of another (https://learn.microsoft.com/sql/t-sql/language-elements/reserved-keywords-transact-sql).
CHANGES = _set("""
    ALTER BACKUP BEGIN BULK CHECKPOINT COMMIT CONVERSATION CREATE DBCC DEALLOCATE DECLARE DELETE DENY
    DROP DUMP DUMPFILE EXEC EXECUTE GOTO GRANT HOLDLOCK INSERT INTO KILL MERGE OUTFILE PAGLOCK PRINT
    PROCEDURE RAISERROR READTEXT RECEIVE RECONFIGURE REPEATABLEREAD RESTORE RETURN REVERT REVOKE
    ROLLBACK ROWLOCK SAVE SERIALIZABLE SET SETUSER SHUTDOWN TABLOCK TABLOCKX THROW TRAN TRIGGER TRUNCATE
    UPDATE UPDATETEXT UPDLOCK USE WAITFOR WHILE WRITETEXT XLOCK
""")
#: Pairs of words that lock rows, take the next number of a sequence, or hide what a name refers to.
CHANGING_PAIRS = frozenset(
    {
        ("FOR", "UPDATE"),
        ("FOR", "SHARE"),
        ("FOR", "NO"),
        ("FOR", "KEY"),
        ("LOCK", "IN"),
        ("NEXT", "VALUE"),
        ("ROWS", "FROM"),
    }
)
#: A call of a client or of a server's pragma that only reads.
READING_PRAGMAS = _set("""
    COLLATION_LIST COMPILE_OPTIONS DATABASE_LIST FOREIGN_KEY_LIST FUNCTION_LIST INDEX_INFO INDEX_LIST
    INDEX_XINFO MODULE_LIST PRAGMA_LIST TABLE_INFO TABLE_LIST TABLE_XINFO
""")
#: Tables in which databases keep passwords, keys and files. Reading them is not harmless.
SECRET_TABLES = _set("""
    pg_authid pg_shadow pg_user_mapping pg_user_mappings pg_hba_file_rules pg_ident_file_mappings
    pg_file_settings pg_largeobject pg_subscription pg_foreign_server pg_statistic mysql.user mysql.db
    mysql.global_priv mysql.servers mysql.slave_master_info mysql.proxies_priv sql_logins syslogins
    sysxlogins sysusers linked_logins credentials database_scoped_credentials fsdir zipfile
""")
#: Words before a bracket that call nothing, and types with a length.
NO_FUNCTIONS = _set("""
    ALL AND ANY APPLY ARRAY AS BETWEEN BY CASE CHECK CONFLICT COPY CUBE DEFAULT DISTINCT DO ELSE END
    EXCEPT EXEC EXECUTE EXISTS EXPLAIN FILTER FROM GROUP GROUPING HAVING ILIKE IN INTERSECT INTERVAL
    INTO IS JOIN KEY LATERAL LIKE LIMIT MATERIALIZED MINUS NOT OF OFFSET ON OR ORDER OVER PARTITION
    PRIMARY RECURSIVE REFERENCES RETURNING ROLLUP ROW SELECT SET SETS SOME TABLE THEN TO TOP UNION
    UNIQUE USING VALUES WHEN WHERE WITH WITHIN BIGINT BIT CHAR CHARACTER DEC DECIMAL FLOAT INT INTEGER
    NCHAR NUMERIC REAL SMALLINT TIME TIMESTAMP VARCHAR VARYING
""")
#: Statements that run what their next word names.
CALLS = frozenset({"CALL", "EXEC", "EXECUTE"})
#: Words before a name with columns in brackets: INSERT INTO t (a, b).
TARGETS = frozenset({"INTO", "TABLE", "REFERENCES", "COPY"})
#: Functions that only compute from their arguments, or say what anyone may know of the session or the clock.
HARMLESS = _set("""
    abs acos age any_value array_agg array_length array_to_string ascii asin atan atan2 avg binary
    bit_and bit_length bit_or blob bool_and bool_or btrim cardinality cast ceil ceiling char_length
    character_length charindex chr coalesce col_description concat concat_ws convert cos cot count
    count_big cume_dist curdate current_database current_date current_schema current_time
    current_timestamp curtime database date date_add date_diff date_format date_part date_sub date_trunc
    dateadd datediff datefromparts datename datepart datetime datetrunc day dayname dayofmonth dayofweek
    dayofyear dense_rank double eomonth every exists exp extract field find_in_set first_value floor
    format format_type from_unixtime generate_series getdate getutcdate glob greatest group_concat
    grouping hex hour if ifnull iif initcap instr isnull json json_agg json_array json_array_elements
    json_array_elements_text json_array_length json_arrayagg json_build_object json_contains json_each
    json_each_text json_extract json_extract_path_text json_group_array json_group_object json_keys
    json_length json_object json_object_agg json_object_keys json_objectagg json_query json_tree
    json_type json_unquote json_valid json_value jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_object jsonb_each jsonb_each_text
    jsonb_object_agg jsonb_object_keys jsonb_pretty jsonb_typeof julianday lag last_day last_value lcase
    lead least left len length likelihood likely listagg ln locate log log10 log2 lower lpad ltrim
    make_date make_interval max md5 microsecond mid min minute mod mode month monthname now nth_value
    ntile nullif num_nonnulls num_nulls nvarchar nvl obj_description object_id object_name octet_length
    overlay patindex percent_rank percentile_cont percentile_disc pg_column_size pg_database_size
    pg_get_constraintdef pg_get_indexdef pg_get_viewdef pg_indexes_size pg_relation_size pg_size_pretty
    pg_table_is_visible pg_table_size pg_total_relation_size pg_typeof pi position power
    pragma_foreign_key_list pragma_index_list pragma_table_info pragma_table_list printf quarter quote
    quote_ident quote_literal quotename radians rand random rank regexp_match regexp_matches
    regexp_replace regexp_split_to_table regexp_substr replace reverse right round row_number rpad rtrim
    schema_name second sign sin split_part sqlite_version sqrt stddev stddev_pop stddev_samp str
    str_to_date strcmp strftime string_agg string_split string_to_array strpos stuff substr substring
    substring_index sum sysdate sysdatetime tan text time timediff timestamp timestampdiff timestamptz
    tinyint to_char to_date to_json to_jsonb to_number to_timestamp total translate trim trunc try_cast
    try_convert typeof ucase unicode unistr unix_timestamp unixepoch unlikely unnest upper utc_timestamp
    uuid var_pop var_samp varbinary variance version week weekday year yearweek
""")
#: Functions without brackets.
VALUES_AS_FUNCTIONS = _set("""
    CURRENT_CATALOG CURRENT_DATE CURRENT_ROLE CURRENT_SCHEMA CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER
    LOCALTIME LOCALTIMESTAMP SESSION_USER SYSTEM_USER USER
""")
#: Schemas whose members may look dangerous and are tables.
SYSTEM_SCHEMAS = frozenset({"pg_catalog", "information_schema", "sys"})
#: Functions that a column is never named after.
DANGEROUS = re.compile(
    r"pg_(read|ls_|stat_file|stat_reset|terminate|cancel|reload|rotate|sleep|advisory|create|drop|logical|promote"
    r"|replication|wal|switch|notify|export|import|file_|log_)|lo_|dblink|xp_|sp_|load_(file|ext)|sys_(eval|exec)"
)
#: Columns of table functions.
COLUMNS = frozenset(
    {"key", "value", "ordinality", "ordinal", "type", "path", "fullkey", "atom", "id", "parent"}
)
