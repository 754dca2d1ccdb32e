"""The program that an agent starts: `python -I -S .../thor_policy/hook/entry.py --agent NAME`.

Owns the import of the package without the site's packages, which takes a third of the time. Invariant: if the
package cannot be imported, the status is 2 and standard error says why. Main thread.
"""

import os
import sys

if __name__ == "__main__":
    try:
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120
        from thor_policy.hook.main import run

        run(sys.argv[1:])
    except BaseException as error:
        try:
            os.write(
                2, f"thor-policy: the hook cannot start: {error!r:.300}. The call is blocked.\n".encode()
            )
        finally:
            os._exit(2)
