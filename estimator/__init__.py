# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
